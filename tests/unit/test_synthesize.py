"""Synthesised checkpoints: they open and compute sanely, are reproducible, and refusals leave no files."""

import importlib
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from earthshine import kernels
from earthshine.engine import SamplingParams, load_model
from earthshine.errors import TextError
from earthshine.hub import GLEAM, find_readable
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec, read_config, spec_from_config
from earthshine.storage import Storage
from earthshine.text import load_tokenizer
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.checkpoint.names import published_trunk
from earthshine.weights.header import read_header
from earthshine.weights.shards import open_shards, read_tensor

TOOLS = Path(__file__).parents[2] / "tools"
MOONLIGHT = TOOLS / "synthesis" / "moonlight.json"
SMALL = {
    "first_k_dense_replace": 1, "hidden_size": 256, "intermediate_size": 256, "kv_lora_rank": 64,
    "moe_intermediate_size": 64, "n_routed_experts": 40, "num_attention_heads": 4, "num_experts_per_tok": 4,
    "num_hidden_layers": 3, "num_key_value_heads": 4, "q_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "vocab_size": 1024, "bos_token_id": 768, "eos_token_id": [769, 770],
    "n_shared_experts": 1,
}  # fmt: skip
VISION = {
    "init_pos_emb_height": 4, "init_pos_emb_width": 4, "patch_size": 14, "text_hidden_size": 256, "vt_hidden_size": 32,
    "vt_intermediate_size": 48, "vt_num_hidden_layers": 2,
}  # fmt: skip


@pytest.fixture
def tool() -> Any:
    """Imports a module of tools/."""
    return importlib.import_module


@pytest.fixture
def write(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Writes a small model with the given words and changed config keys; returns its folder."""

    def run(name: str, *words: str, **keys: object) -> Path:
        config = json.loads(MOONLIGHT.read_text()) | SMALL | keys
        if keys.get("model_type") == "kimi_k25":
            text = config | {"model_type": "kimi_k2"}
            config = {"model_type": "kimi_k25", "text_config": text, "vision_config": VISION}
        like = tmp_path / f"{name}.json"
        like.write_text(json.dumps(config))
        code = tool("synthesize").main([str(tmp_path / name), "--like", str(like), *words])
        assert code == 0, capsys.readouterr().err
        return tmp_path / name

    return run


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: read_tensor(extent) for name, extent in open_shards(folder).items()}


def _decoded(values: dict[str, torch.Tensor], name: str, storage: str) -> torch.Tensor:
    """fp32 [64, 256], by the formats' definitions."""
    if storage == "bf16":
        return values[name].float()
    if storage == "fp8":
        return values[name].float() * values[f"{name}_scale_inv"].repeat_interleave(128, 1)
    assert values[f"{name}_shape"].tolist() == [64, 256]
    packed = values[f"{name}_packed"].view(torch.uint8)
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).float() - 8
    return codes * values[f"{name}_scale"].float().repeat_interleave(32, 1)


@pytest.mark.parametrize("family", ["deepseek_v3", "kimi_k25"])
@pytest.mark.parametrize("storage", ["bf16", "fp8", "int4"])
def test_every_storage_opens_and_is_of_the_size_that_keeps_activations(write: Any, family: str, storage: str) -> None:
    folder = write("model", "--expert-storage", storage, "--layers", "2", "--experts", "8", model_type=family)
    spec = load_spec(folder)
    assert spec.expert_storage == {"bf16": "bf16", "fp8": "fp8-128x128", "int4": "int4-g32"}[storage]
    checkpoint = Checkpoint.open(folder, spec)
    for published in published_trunk(spec):
        assert torch.isfinite(checkpoint.trunk(published.name).float()).all(), published.name
    values = stored(folder)
    prefix = "language_model." if family == "kimi_k25" else ""
    gates = [f"{prefix}model.layers.1.mlp.experts.{expert}.gate_proj.weight" for expert in range(8)]
    weight = torch.cat([_decoded(values, gate, storage) for gate in gates])
    # 131072 values, and in fp8 16 scales with a spread of a quarter.
    assert weight.std() * 256**0.5 == pytest.approx(1, rel=0.25 if storage == "fp8" else 0.03)
    assert abs(weight.mean()) * 256**0.5 < 0.05
    assert checkpoint.trunk("head").float().std() * 256**0.5 == pytest.approx(4, rel=0.05)


def test_a_tensor_depends_on_seed_and_name_alone(write: Any) -> None:
    every = ("--expert-storage", "int4")
    first = stored(write("first", *every))
    again = stored(write("again", *every, "--experts", "7", "--shard-bytes", "300KB", "--skew", "1"))
    other = stored(write("other", *every, "--seed", "1"))
    common = [name for name in again if first[name].shape == again[name].shape and not name.endswith("weight_shape")]
    assert len(common) > 100
    for name in common:
        assert torch.equal(first[name].view(torch.uint8), again[name].view(torch.uint8)), name
        assert name.endswith("bias") or not torch.equal(first[name], other[name]), name


def test_int4_codes_use_all_sixteen_values_have_mean_zero_and_independent_neighbours(tool: Any) -> None:
    streams = tool("synthesis.streams")
    raw = torch.frombuffer(bytearray(b"".join(streams.int4_codes(streams.Stream(0, "x"), 1 << 18))), dtype=torch.uint8)
    codes = torch.stack((raw & 15, raw >> 4), -1).flatten().float() - 8
    assert codes.unique().tolist() == list(range(-8, 8))
    assert abs(codes.mean()) < 0.02
    assert codes.std() == pytest.approx(streams.int4_deviation(), rel=0.01)
    assert abs(torch.corrcoef(torch.stack((codes[:-1], codes[1:])))[0, 1]) < 0.02


def test_a_shard_is_ordered_as_the_safetensors_library_orders_it(write: Any, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    for storage in ("int4", "fp8"):
        for shard in sorted(write(storage, "--expert-storage", storage, "--experts", "12").glob("*.safetensors")):
            header = read_header(shard)
            save_file({extent.name: read_tensor(extent) for extent in header.extents}, tmp_path / "theirs")
            theirs = [extent.name for extent in read_header(tmp_path / "theirs").extents]
            assert [extent.name for extent in header.extents] == theirs


def test_the_default_is_a_shard_a_layer_and_one_for_the_rest(write: Any) -> None:
    folder = write("model", model_type="kimi_k25")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["language_model.model.layers.0.mlp.up_proj.weight"] == "model-00001-of-000004.safetensors"
    assert index["language_model.model.layers.2.mlp.gate.weight"] == "model-00003-of-000004.safetensors"
    assert index["language_model.lm_head.weight"] == "model-00004-of-000004.safetensors"


def test_activations_stay_of_order_one_and_logits_spread(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 layers: the residual stream neither dies nor explodes, and the next token is neither certain nor a guess."""
    model = load_model(write("deep", "--layers", "16", "--experts", "8", "--expert-storage", "int4"))
    sizes, plain = list[float](), kernels.rms_norm

    def spy(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.shape[-1] == 256:
            sizes.append(x.float().pow(2).mean().sqrt().item())
        return plain(x, *rest)

    monkeypatch.setattr(kernels, "rms_norm", spy)
    session = model.session(256)
    prompt = torch.randint(0, 768, (120,), generator=torch.Generator().manual_seed(1)).tolist()
    session.sync(prompt)
    assert sizes[0] == pytest.approx(1, abs=0.05)
    assert all(0.9 < size < 3 for size in sizes)
    assert sizes[-1] > 1.2
    likelihoods = torch.as_tensor(session.score(prompt)).float()
    assert 3 < likelihoods.std() < 5  # of a random token's logit, which is 4
    events = list(session.generate(SamplingParams(temperature=0.0, max_tokens=16)))
    tokens = [event.token for event in events if hasattr(event, "logprob")]
    assert len(set(tokens)) > len(tokens) / 2


def _busiest_decile(folder: Path) -> tuple[float, torch.Tensor]:
    """The share of choices that the busiest tenth of experts gets on random tokens, and each expert's share."""
    spec = load_spec(folder)
    checkpoint = Checkpoint.open(folder, spec)
    router, bias = checkpoint.trunk("layers.1.router"), checkpoint.trunk("layers.1.router_bias")
    x = torch.randn(4000, spec.hidden, generator=torch.Generator().manual_seed(5))
    chosen, _ = kernels.route(x @ router.float().T, bias, top_k=4)
    shares = torch.bincount(chosen.flatten(), minlength=40).sort(descending=True).values / 4000
    return (shares[:4].sum() / 4).item(), shares


def test_skew_makes_expert_popularity_follow_zipf(write: Any, tool: Any) -> None:
    even, _ = _busiest_decile(write("even"))
    one, shares = _busiest_decile(write("one", "--skew", "1"))
    two, _ = _busiest_decile(write("two", "--skew", "2"))
    assert even < 0.2
    assert 0.4 < one < two
    wanted = torch.from_numpy(tool("synthesis.routing").popularity(40, 4, 1.0)).float()
    assert torch.allclose(shares, wanted, atol=0.1)


def test_popularity_sums_to_top_k_below_its_cap(tool: Any) -> None:
    popularity = tool("synthesis.routing").popularity
    for n_experts, top_k, exponent in ((384, 8, 1.0), (40, 4, 4.0), (8, 8, 1.0), (8, 1, 0.0)):
        shares = popularity(n_experts, top_k, exponent)
        assert shares.sum() == pytest.approx(top_k)
        assert shares.max() <= 1
        assert (shares[:-1] >= shares[1:]).all()


def test_sparse_is_whole_to_the_reader_and_hardly_there_on_disk(write: Any) -> None:
    keys = {"hidden_size": 2048, "moe_intermediate_size": 1024, "intermediate_size": 8192, "vocab_size": 40960,
            "bos_token_id": 40704, "eos_token_id": 40706}  # fmt: skip
    folder = write("big", "--sparse", "--expert-storage", "int4", model_type="kimi_k25", **keys)
    stats = [path.stat() for path in folder.glob("*.safetensors")]
    assert len(stats) == 6  # a layer each, the rest, projector and tower
    assert sum(stat.st_size for stat in stats) > 600e6
    assert sum(512 * stat.st_blocks for stat in stats) < 40e6
    checkpoint = Checkpoint.open(folder, load_spec(folder))
    assert sum(share.n_tensors for share in checkpoint.coverage().shares if share.kind == "ignored") == 2 * 12 + 11
    assert read_tensor(
        checkpoint.shards["language_model.model.layers.2.mlp.experts.39.down_proj.weight_shape"]
    ).tolist() == [2048, 1024]


def test_a_sparse_model_counts_and_routes_tokens_apart(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(write("model", "--sparse", "--expert-storage", "int4", model_type="kimi_k25"))
    chosen, plain = list[torch.Tensor](), kernels.route

    def spy(*rest: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = plain(*rest, **named)
        chosen.append(found[0])
        return found

    monkeypatch.setattr(kernels, "route", spy)
    session = model.session(64)
    session.sync([*range(100, 100 + kernels.LAYER_TOKENS), 5, 300, 700, 20])  # more tokens than one native call routes
    events = list(session.generate(SamplingParams(temperature=0.0, max_tokens=5)))
    assert [event.token for event in events if hasattr(event, "logprob")] == [21, 22, 23, 24, 25]
    assert all(math.isfinite(event.logprob) for event in events if hasattr(event, "logprob"))
    assert len({tuple(sorted(row)) for layer in chosen for row in layer.tolist()}) > 10


def test_a_cut_vocabulary_keeps_control_tokens_at_its_end(tool: Any) -> None:
    config = tool("synthesis.config")
    published = json.loads(MOONLIGHT.read_text()) | {"eos_token_id": [163585, 7], "pad_token_id": None}
    cut, spec = config.cut_config(published, config.Cut(vocab_size=1000))
    assert (cut["bos_token_id"], cut["eos_token_id"], cut["pad_token_id"]) == (744, [745, 7], None)
    assert spec.vocab_size == 1000
    assert published["vocab_size"] == 163840


def test_published_configs_are_cut_to_any_storage_and_otherwise_kept(tool: Any, shared_data: Path) -> None:
    config = tool("synthesis.config")
    readable = ("moonshotai--Kimi-K2.6", "moonshotai--Kimi-K2-Instruct", "deepseek-ai--DeepSeek-V3")
    for name in readable:
        published = read_config(shared_data / "configs" / f"{name}_config.json")
        if "DeepSeek" not in name:  # whose layers for multi-token prediction are not written
            assert config.cut_config(published, config.Cut())[0] == published
        for word, storage in config.STORAGES.items():
            cut = config.Cut(n_layers=5, n_experts=16, top_k=2, expert_storage=word)
            spec = spec_from_config(config.cut_config(published, cut)[0])
            assert (spec.n_layers, spec.layers[4].ffn.n_experts, spec.layers[4].ffn.top_k) == (5, 16, 2)
            assert spec.expert_storage is storage
            assert spec.n_mtp_layers == 0
    nvfp4 = read_config(shared_data / "configs" / "nvidia--Kimi-K2.6-NVFP4_config.json")
    assert config.cut_config(nvfp4, config.Cut(expert_storage="int4"))[1].expert_storage is Storage.INT4_GROUP32


def test_tokenizer_and_generation_config_come_along(write: Any, tmp_path: Path) -> None:
    gleam = load_spec(GLEAM)
    ids = {"vocab_size": gleam.vocab_size, "eos_token_id": list(gleam.stop_tokens)}
    folder = write("model", "--tokenizer", str(GLEAM), **ids)
    assert load_tokenizer(folder).vocab_size == load_tokenizer(GLEAM).vocab_size
    assert not (folder / "README.md").exists()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"do_sample": False, "eos_token_id": ids["eos_token_id"], "max_length": 8192}


def test_without_a_tokenizer_it_says_what_reads_the_result_and_that_is_so(
    tool: Any, tmp_path: Path, capsys: Any
) -> None:
    words = ["--like", str(GLEAM / "config.json"), "--layers", "2"]
    assert tool("synthesize").main([str(tmp_path / "bare"), *words]) == 0
    sentence = capsys.readouterr().out.splitlines()[1]
    assert "It has no tokenizer" in sentence
    assert "--tokenizer FOLDER" in sentence
    model = load_model(tmp_path / "bare", PlanArgs(context_tokens=64))
    assert model.spec.n_layers == 2
    model.close()
    with pytest.raises(TextError, match="tokenizer"):
        find_readable(str(tmp_path / "bare"))
    assert tool("synthesize").main([str(tmp_path / "whole"), *words, "--tokenizer", str(GLEAM)]) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    assert find_readable(str(tmp_path / "whole"))[0] == tmp_path / "whole"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--like", "/nowhere"], "does not exist"),
        (["--layers", "0"], "num_hidden_layers is 0; it must be an integer from 1"),
        (["--layers", "1"], "leaves no layer with experts"),
        (["--top-k", "65"], "num_experts_per_tok is 65"),
        (["--vocab", "163841"], "can only be cut"),
        (["--expert-storage", "int4", "--trunk-storage", "fp8"], "no published config stores it beside"),
        (["--skew", "nan"], "--skew is nan; it must be between 0 and 4"),
        (["--skew", "-1"], "--skew is -1"),
        (["--tokenizer", "/nowhere"], "holds neither tiktoken.model nor tokenizer.json"),
        (["--tokenizer", str(GLEAM), "--vocab", "1000"], "6144 ids do not fit the model's 1000"),
        (["--tokenizer", str(GLEAM)], "do not fit the model's 163840 and its stop tokens"),
        (["--layers", "4000", "--experts", "60000"], "experts in all layers"),
        (["--layers", "3000"], "free some space"),
    ],
)
def test_invalid_arguments_are_refused_and_leave_no_files(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code = tool("synthesize").main([str(tmp_path / "new" / "model"), "--like", str(MOONLIGHT), *words])
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["0B", "5", "-1GiB", "5 TiBs", "1e9B"])
def test_invalid_size_is_refused(tool: Any, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit) as refused:
        tool("synthesize").main(["x", "--like", str(MOONLIGHT), f"--shard-bytes={size}"])
    assert refused.value.code == 2
    assert "write one such as 5GiB" in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_and_during(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize = tool("synthesize")
    words = [str(tmp_path / "new" / "model"), "--like", str(MOONLIGHT), "--layers", "2", "--vocab", "1000"]
    with monkeypatch.context() as patch:
        patch.setattr(synthesize.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
        assert synthesize.main(words) == 2
    assert "which has 1.00 GiB free" in capsys.readouterr().err

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    assert synthesize.main(words) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_anything_is_not_touched(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        assert tool("synthesize").main([str(folder), "--like", str(MOONLIGHT)]) == 2
        assert "not an empty folder" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
