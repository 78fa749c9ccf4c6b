"""DeepSeek-V3's decoder as a config describes it: `deepseek_v3` (V3, R1, V3.1, Moonlight) and `kimi_k2`.

One mapping from checkpoint spellings to Earthshine's words serves these and the text half of `kimi_k25`. Anything
but multi-head latent attention, sigmoid noaux_tc routing in every layer after the dense ones, static YaRN or plain
RoPE, and untied embeddings is refused. The multi-token-prediction layers that DeepSeek publishes are counted, not read.
"""

from dataclasses import dataclass

from earthshine.spec.attention import MlaSpec, RopeSpec, YarnSpec
from earthshine.spec.families.bookkeeping import BOOKKEEPING, refuse_encoders
from earthshine.spec.families.quantization import Quantization, check_exceptions, read_quantization
from earthshine.spec.families.reader import SIZE_MAX, KeyReader
from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec, MoeSpec, RouterSpec
from earthshine.storage import INT4_GROUP, Storage

MAX_LAYERS = 4096
MAX_EXPERTS = 65536
MAX_HEADS = 65536
KIMI_VOCABULARY = 163840
KIMI_SPECIALS = 256  # the last ids of a Kimi vocabulary: [BOS], [EOS], <|im_end|>, ...

# The publisher's modelling code builds these two norms without an epsilon and so takes its class default, whatever
# rms_norm_eps says: 1e-6 also where K2.6 has 1e-5.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids that begin and end text."""

    bos: int | None
    stops: tuple[int, ...]


def read_flat(config: dict[str, object]) -> ModelSpec:
    """The spec of a `deepseek_v3` or `kimi_k2` config. Raises SpecError or Unsupported, naming every wrong key."""
    keys = KeyReader(config)
    family = str(keys.equal("model_type", "deepseek_v3", "kimi_k2"))
    quantization = read_quantization(keys)
    model = read_decoder(keys, family, quantization, read_tokens(family, keys))
    check_exceptions(quantization, model, keys.problems)
    keys.finish()
    return model


def read_tokens(family: str, text: KeyReader, outer: KeyReader | None = None) -> Tokens:
    """Stop tokens are the union of both levels' eos and, in Kimi vocabularies, [EOS] and <|im_end|>.

    Kimi chat turns end with <|im_end|> while K2.5's config names [EOS] only.
    """
    vocab_size = text.integer("vocab_size")
    bound = SIZE_MAX if text.problems else vocab_size  # a stand-in bounds nothing
    levels = (text,) if outer is None else (text, outer)
    stops: set[int] = set()
    for level in levels:
        stops |= level.token_ids("eos_token_id", bound)
    begins = [level.integer("bos_token_id", 0, bound - 1) for level in levels if level.has("bos_token_id")]
    text.require(len(set(begins)) <= 1, f"{text.name('bos_token_id')} and bos_token_id name different tokens")
    bos = begins[0] if begins else None
    if family == "kimi_k25" or vocab_size == KIMI_VOCABULARY:
        text.require(vocab_size > KIMI_SPECIALS, f"{text.name('vocab_size')} must exceed {KIMI_SPECIALS}")
        first = vocab_size - KIMI_SPECIALS
        bos = first if bos is None else bos
        stops |= {first + 1, first + 2}
    text.require(bool(stops), f"{text.name('eos_token_id')} is missing; it must name at least one token id")
    return Tokens(bos, tuple(sorted(stops)))


def read_decoder(keys: KeyReader, family: str, quantization: Quantization, tokens: Tokens) -> ModelSpec:
    """The spec of a DeepSeek-V3 decoder. It may hold stand-ins until `finish` of the outermost reader has passed."""
    _refuse_other_decoders(keys)
    hidden = keys.integer("hidden_size")
    n_layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    n_dense = keys.integer("first_k_dense_replace", 0, MAX_LAYERS)
    keys.require(n_dense < n_layers, f"{keys.name('first_k_dense_replace')} leaves no layer with experts")
    attention = _read_attention(keys)
    dense = LayerSpec(attention, DenseSpec(keys.integer("intermediate_size")))
    moe = read_moe(keys)
    if quantization.experts is Storage.INT4_GROUP32:
        for key, extent in (("hidden_size", hidden), ("moe_intermediate_size", moe.intermediate)):
            keys.require(extent % INT4_GROUP == 0, f"{keys.name(key)} is {extent}; int4 groups need a multiple of 32")
    model = ModelSpec(
        family=family,
        hidden=hidden,
        vocab_size=keys.integer("vocab_size"),
        max_context=keys.integer("max_position_embeddings"),
        norm_eps=keys.number("rms_norm_eps", 1e-12, 0.1),
        layers=(dense,) * n_dense + (LayerSpec(attention, moe),) * (n_layers - n_dense),
        trunk_storage=quantization.trunk,
        expert_storage=quantization.experts,
        bos_token=tokens.bos,
        stop_tokens=tokens.stops,
        n_mtp_layers=keys.integer("num_nextn_predict_layers", 0, 16, default=0),
    )
    keys.ignore(BOOKKEEPING)
    return model


def _refuse_other_decoders(keys: KeyReader) -> None:
    """Values of which one alone is implemented. An absent optional key means that value in the publishers' code."""
    keys.equal("architectures", ["DeepseekV3ForCausalLM"], None, optional=True)
    keys.equal("hidden_act", "silu")
    keys.equal("attention_bias", False, optional=True)
    keys.equal("moe_layer_freq", 1, optional=True)
    keys.equal("topk_method", "noaux_tc", optional=True)
    keys.equal("scoring_func", "sigmoid", optional=True)
    keys.equal("rope_interleave", True, optional=True)
    keys.equal("tie_word_embeddings", False, optional=True)
    keys.equal("torch_dtype", "bfloat16", None, optional=True)
    refuse_encoders(keys)


def _read_attention(keys: KeyReader) -> MlaSpec:
    n_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    n_key_heads = keys.integer("num_key_value_heads", 1, MAX_HEADS)
    keys.require(
        n_key_heads == n_heads,
        f"{keys.name('num_key_value_heads')} is {n_key_heads}; latent attention needs num_attention_heads ({n_heads})",
    )
    rope_dim = keys.integer("qk_rope_head_dim", 2)
    keys.require(rope_dim % 2 == 0, f"{keys.name('qk_rope_head_dim')} is {rope_dim}; rotation needs an even number")
    nope_dim = keys.integer("qk_nope_head_dim")
    # transformers writes two derived sizes into the configs that it saves.
    keys.equal("head_dim", rope_dim, optional=True)
    keys.equal("qk_head_dim", nope_dim + rope_dim, optional=True)
    return MlaSpec(
        n_heads=n_heads,
        q_lora_rank=_read_q_lora_rank(keys),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        v_dim=keys.integer("v_head_dim"),
        rope=_read_rope(keys, rope_dim),
        latent_norm_eps=LATENT_NORM_EPS,
    )


def _read_q_lora_rank(keys: KeyReader) -> int | None:
    """Null is a choice (Moonlight) and must be written: an absent key has meant 1536 in DeepSeek's own code."""
    if keys.given("q_lora_rank") and not keys.has("q_lora_rank"):
        return None
    return keys.integer("q_lora_rank")


def _read_rope(keys: KeyReader, dim: int) -> RopeSpec:
    """Both published forms: rope_scaling beside rope_theta, and rope_parameters that holds both."""
    if not keys.has("rope_scaling"):
        return RopeSpec(dim, keys.number("rope_theta", 2, 1e12), None)
    block = keys.block("rope_scaling")
    holders = [level for level in (block, keys) if level.has("rope_theta")] or [keys]
    thetas = [level.number("rope_theta", 2, 1e12) for level in holders]
    keys.require(len(set(thetas)) == 1, f"{block.name('rope_theta')} and {keys.name('rope_theta')} differ")
    kind = block.equal("type", "yarn", "default", None, optional=not block.given("factor"))
    return RopeSpec(dim, thetas[0], _read_yarn(block) if kind == "yarn" else None)


def _read_yarn(block: KeyReader) -> YarnSpec:
    """Where absent, mscale is 1 and mscale_all_dim 0 (no change of the softmax scale), as DeepSeek's code has it."""
    beta_slow = block.number("beta_slow", 1e-3, 1e6)
    beta_fast = block.number("beta_fast", 1e-3, 1e6)
    block.require(beta_fast >= beta_slow, f"{block.name('beta_fast')} must be at least beta_slow")
    return YarnSpec(
        factor=block.number("factor", 1, 1e6),
        original_context=block.integer("original_max_position_embeddings"),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        mscale=block.number("mscale", 0, 100, default=1.0),
        mscale_all_dim=block.number("mscale_all_dim", 0, 100, default=0.0),
    )


def read_moe(keys: KeyReader) -> MoeSpec:
    n_experts = keys.integer("n_routed_experts", 1, MAX_EXPERTS)
    top_k = keys.integer("num_experts_per_tok", 1, MAX_EXPERTS)
    n_groups = keys.integer("n_group", 1, MAX_EXPERTS)
    groups_kept = keys.integer("topk_group", 1, MAX_EXPERTS)
    intermediate = keys.integer("moe_intermediate_size")
    n_shared = keys.integer("n_shared_experts", 0, 1024, default=0)
    keys.require(
        n_experts % n_groups == 0,
        f"{keys.name('n_group')} is {n_groups}; it must divide {keys.name('n_routed_experts')} ({n_experts})",
    )
    keys.require(groups_kept <= n_groups, f"{keys.name('topk_group')} is {groups_kept}; n_group is only {n_groups}")
    per_group = n_experts // n_groups
    # A group's score is the sum of its two best experts.
    keys.require(n_groups == 1 or per_group >= 2, f"{keys.name('n_group')} is {n_groups}; a group needs two experts")
    keys.require(
        top_k <= per_group * groups_kept,
        f"{keys.name('num_experts_per_tok')} is {top_k}; {keys.name('n_routed_experts')} and the kept groups "
        f"allow {per_group * groups_kept}",
    )
    return MoeSpec(
        n_experts=n_experts,
        top_k=top_k,
        intermediate=intermediate,
        shared_intermediate=n_shared * intermediate,
        router=RouterSpec(
            n_groups=n_groups,
            groups_kept=groups_kept,
            normalize=keys.flag("norm_topk_prob"),
            scale=keys.number("routed_scaling_factor", 1e-6, 1e6),
        ),
    )
