"""Writes a published INT4 checkpoint of DeepSeek-V3's shape as one GGUF file with the same values, for llama.cpp.

    python to_gguf.py MODEL OUT.gguf            (in llama.cpp's environment: needs numpy and gguf)

Routed experts become Q4_0 with the published nibbles and scales (published.py); the trunk stays bf16; norms and
routers become float32, which holds every bf16. One expert is in memory at a time. The file has no vocabulary, or one
of placeholders: token ids go in, and logits or token ids come out.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from published import BLOCK_BYTES, GROUP, Published, Refused, q4_0, widened

_ATTENTION = {
    "input_layernorm": ("attn_norm", Kind.F32),
    "self_attn.q_proj": ("attn_q", Kind.BF16),
    "self_attn.q_a_proj": ("attn_q_a", Kind.BF16),
    "self_attn.q_a_layernorm": ("attn_q_a_norm", Kind.F32),
    "self_attn.q_b_proj": ("attn_q_b", Kind.BF16),
    "self_attn.kv_a_proj_with_mqa": ("attn_kv_a_mqa", Kind.BF16),
    "self_attn.kv_a_layernorm": ("attn_kv_a_norm", Kind.F32),
    "self_attn.o_proj": ("attn_output", Kind.BF16),
    "post_attention_layernorm": ("ffn_norm", Kind.F32),
    "mlp.gate": ("ffn_gate_inp", Kind.F32),
}
_FFN = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to write: numpy's shape, how it is stored, and its bytes piece by piece."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        values = int(np.prod(self.shape))
        return {Kind.F32: 4 * values, Kind.BF16: 2 * values, Kind.Q4_0: values // GROUP * BLOCK_BYTES}[self.kind]


def plain(source: Published, name: str, target: str, kind: Kind) -> Planned:
    convert = widened if kind is Kind.F32 else np.asarray
    return Planned(target, source.shape(name), kind, lambda: iter([convert(source.array(name))]))


def layer(source: Published, config: dict[str, Any], index: int) -> Iterator[Planned]:
    """The tensors of one layer."""
    ours, theirs = f"model.layers.{index}.", f"blk.{index}."
    for name, (target, kind) in _ATTENTION.items():
        if ours + name + ".weight" in source:
            yield plain(source, ours + name + ".weight", theirs + target + ".weight", kind)
    yield from latent_heads(source, config, ours, theirs)
    if ours + "mlp.gate_proj.weight" in source:
        for part, target in _FFN.items():
            yield plain(source, f"{ours}mlp.{part}_proj.weight", f"{theirs}{target}.weight", Kind.BF16)
        return
    bias = ours + "mlp.gate.e_score_correction_bias"
    if bias in source:
        yield plain(source, bias, theirs + "exp_probs_b.bias", Kind.F32)
    for part, target in _FFN.items():
        shared = f"{ours}mlp.shared_experts.{part}_proj.weight"
        if shared in source:
            yield plain(source, shared, f"{theirs}{target}_shexp.weight", Kind.BF16)
        yield routed(source, config["n_routed_experts"], ours, part, f"{theirs}{target}_exps.weight")


def latent_heads(source: Published, config: dict[str, Any], ours: str, theirs: str) -> Iterator[Planned]:
    """kv_b_proj [heads * (nope + v), rank] as attn_k_b [heads, rank, nope] and attn_v_b [heads, v, rank]."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    name = ours + "self_attn.kv_b_proj.weight"

    def split() -> np.ndarray:
        return source.array(name).reshape(heads, nope + value, rank)

    keys = lambda: iter([split()[:, :nope].transpose(0, 2, 1)])  # noqa: E731
    yield Planned(theirs + "attn_k_b.weight", (heads, rank, nope), Kind.BF16, keys)
    yield Planned(theirs + "attn_v_b.weight", (heads, value, rank), Kind.BF16, lambda: iter([split()[:, nope:]]))


def routed(source: Published, n_experts: int, ours: str, part: str, target: str) -> Planned:
    """One projection of all experts of a layer, stacked, one expert at a time."""
    names = [f"{ours}mlp.experts.{expert}.{part}_proj." for expert in range(n_experts)]
    if names[0] + "weight_packed" not in source:
        raise Refused(f"{names[0]}weight_packed is missing; only INT4 experts are written as Q4_0.")
    rows, words = source.shape(names[0] + "weight_packed")

    def pieces() -> Iterator[np.ndarray]:
        for name in names:
            yield q4_0(source.array(name + "weight_packed"), source.array(name + "weight_scale"))

    return Planned(target, (n_experts, rows, 8 * words), Kind.Q4_0, pieces)


def tensors(source: Published, config: dict[str, Any]) -> Iterator[Planned]:
    yield plain(source, "model.embed_tokens.weight", "token_embd.weight", Kind.BF16)
    for index in range(config["num_hidden_layers"]):
        yield from layer(source, config, index)
    yield plain(source, "model.norm.weight", "output_norm.weight", Kind.F32)
    yield plain(source, "lm_head.weight", "output.weight", Kind.BF16)


def describe(writer: gguf.GGUFWriter, config: dict[str, Any], placeholders: bool) -> None:
    """The metadata of llama.cpp's `deepseek2`, which holds DeepSeek-V3's mathematics too."""
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)  # with the heads' matrices absorbed, all heads share one latent
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_q_lora_rank(config["q_lora_rank"] or 0)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config["n_group"] > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(config["rope_theta"])
    vocabulary(writer, config["vocab_size"] if placeholders else 0)
    if config["rope_scaling"] is not None:
        yarn(writer, config["rope_scaling"])


def vocabulary(writer: gguf.GGUFWriter, n_words: int) -> None:
    """A word that means nothing for each id, since llama.cpp's server does not start without a vocabulary; 0: none."""
    if not n_words:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{number}>" for number in range(n_words)])
    writer.add_token_types([gguf.TokenType.NORMAL] * n_words)
    writer.add_token_merges(["< 0"])
    writer.add_eos_token_id(n_words - 1)
    writer.add_bos_token_id(n_words - 2)
    writer.add_add_bos_token(False)


def yarn(writer: gguf.GGUFWriter, scaling: dict[str, Any]) -> None:
    if scaling.get("type", scaling.get("rope_type")) != "yarn" or scaling["mscale"] != scaling["mscale_all_dim"]:
        raise Refused("Only YaRN with equal mscale and mscale_all_dim is written.")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    # llama.cpp's reader divides by 0.1 again; see the deepseek2 loader.
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def write(folder: Path, out: Path, placeholders: bool = False) -> None:
    """Writes `out`, whole or not at all. Raises Refused, OSError."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    if config.get("scoring_func") != "sigmoid" or config.get("tie_word_embeddings"):
        raise Refused("Only a model with sigmoid gates and a head of its own is written.")
    planned = list(tensors(Published(folder), config))
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "deepseek2")
    describe(writer, config, placeholders)
    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), tensor.nbytes, tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for tensor in planned:
            begin = file.tell()
            for piece in tensor.pieces():
                file.write(np.ascontiguousarray(piece).data)
            if file.tell() - begin != tensor.nbytes:
                raise Refused(f"{tensor.name} took {file.tell() - begin} bytes instead of {tensor.nbytes}.")
            writer.write_padding(file, tensor.nbytes)
        writer.close()
        part.rename(out)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--placeholders", action="store_true", help="write a vocabulary of placeholders, for servers")
    options = parser.parse_args()
    try:
        write(options.model, options.out, options.placeholders)
    except KeyError as error:
        print(f"config.json lacks {error}.", file=sys.stderr)
        return 2
    except (Refused, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
