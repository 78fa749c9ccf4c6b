"""Checkpoints: round trips in every storage, and every mismatch with the spec refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.writer import encode_fp8, encode_int4, published_tensors, write_checkpoint

from earthshine import kernels
from earthshine.errors import CheckpointError, UsageError
from earthshine.spec.layout import trunk_tensors
from earthshine.storage import Storage
from earthshine.weights.checkpoint import Checkpoint, Share
from earthshine.weights.reading import Reader
from earthshine.weights.trunk import StoredTrunk

from .tiny import HIDDEN, N_EXPERTS, expert_values, open_tiny, random_tensors, tiny_spec, write_tiny

Change = Callable[[dict[str, torch.Tensor]], object]


def published(tensor: torch.Tensor, storage: Storage) -> torch.Tensor:
    """The values that a reader must see for a linear layer written in `storage`."""
    if storage is Storage.FP8_BLOCK128:
        return kernels.decode(kernels.fp8_matrix(*encode_fp8(tensor)))
    if storage is Storage.INT4_GROUP32:
        return kernels.decode(kernels.int4_matrix(*encode_int4(tensor)[:2]))
    return tensor


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize("family", ["deepseek_v3", "kimi_k25"])
@pytest.mark.parametrize(
    ("experts", "trunk"),
    [(Storage.BF16, Storage.BF16), (Storage.INT4_GROUP32, Storage.BF16), (Storage.FP8_BLOCK128, Storage.FP8_BLOCK128)],
)
def test_what_is_written_is_read_back_exactly(tmp_path: Path, family: str, experts: Storage, trunk: Storage) -> None:
    spec = tiny_spec(experts, trunk, family=family)
    tensors = write_tiny(tmp_path, spec, shard_bytes=200_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    checkpoint = Checkpoint.open(tmp_path, spec)
    for tensor in trunk_tensors(spec):
        wanted = published(tensors[tensor.name], trunk) if tensor.linear else tensors[tensor.name]
        assert same(checkpoint.trunk(tensor.name), wanted), tensor.name
    for layer, expert in [(1, 0), (2, N_EXPERTS - 1)]:
        for part, value in zip(("gate", "up", "down"), expert_values(checkpoint, layer, expert), strict=True):
            assert same(value, published(tensors[f"layers.{layer}.experts.{expert}.{part}"], experts))


def test_published_names_are_those_of_the_releases(tmp_path: Path) -> None:
    """Spot checks against the tensor listing of Kimi-K2.5."""
    names = set(open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32, family="kimi_k25")).shards)
    base = "language_model.model.layers"
    assert {
        "language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "language_model.model.norm.weight",
        f"{base}.0.input_layernorm.weight", f"{base}.0.post_attention_layernorm.weight",
        f"{base}.0.self_attn.q_a_proj.weight", f"{base}.0.self_attn.q_a_layernorm.weight",
        f"{base}.0.self_attn.q_b_proj.weight", f"{base}.0.self_attn.kv_a_proj_with_mqa.weight",
        f"{base}.0.self_attn.kv_a_layernorm.weight", f"{base}.0.self_attn.kv_b_proj.weight",
        f"{base}.0.self_attn.o_proj.weight", f"{base}.0.mlp.gate_proj.weight", f"{base}.0.mlp.down_proj.weight",
        f"{base}.1.mlp.gate.weight", f"{base}.1.mlp.gate.e_score_correction_bias",
        f"{base}.1.mlp.shared_experts.up_proj.weight", f"{base}.2.self_attn.q_proj.weight",
        f"{base}.1.mlp.experts.5.gate_proj.weight_packed", f"{base}.1.mlp.experts.5.up_proj.weight_scale",
        f"{base}.2.mlp.experts.0.down_proj.weight_shape",
    } <= names  # fmt: skip
    assert len(names) == 3 + 12 + 14 + 12 + 2 * N_EXPERTS * 9


def test_fp32_checkpoints_are_read_as_they_are(tmp_path: Path) -> None:
    spec = tiny_spec()
    tensors = write_tiny(tmp_path, spec, dtype=torch.float32)
    checkpoint = Checkpoint.open(tmp_path, spec)
    assert same(checkpoint.trunk("layers.1.attention.q_a"), tensors["layers.1.attention.q_a"])
    assert checkpoint.trunk("norm").dtype == torch.float32


def altered(folder: Path, change: Change, experts: Storage = Storage.INT4_GROUP32, **kind: str) -> None:
    """Writes a tiny checkpoint whose published tensors `change` has altered, and opens it."""
    spec = tiny_spec(experts, **kind)  # type: ignore[arg-type]
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    change(tensors)
    write_checkpoint(folder, tensors.items(), 2**40)
    Checkpoint.open(folder, spec)


def test_everything_that_does_not_fit_is_listed_together(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        tensors["lm_tail.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(HIDDEN, dtype=torch.float16)
        tensors["model.layers.1.mlp.gate.weight"] = torch.zeros(N_EXPERTS + 1, HIDDEN)
        tensors["model.layers.1.mlp.experts.0.up_proj.weight_scale"] = torch.zeros(96, HIDDEN // 32)

    with pytest.raises(CheckpointError, match="5 problems") as caught:
        altered(tmp_path, change)
    message = str(caught.value)
    assert "lm_head.weight is missing" in message
    assert "'lm_tail.weight' is unexpected" in message
    assert "model.norm.weight is F16, and should be BF16 or F32" in message
    assert "mlp.gate.weight has shape [7, 160], and should have [6, 160]" in message
    assert "up_proj.weight_scale is F32, and should be BF16" in message


@pytest.mark.parametrize(
    "name",
    ["vision_tower.patch_embed.proj.weight", "mm_projector.proj.0.bias", "language_model.model.layers.4.x",
     "model.layers.0.self_attn.rotary_emb.inv_freq", "language_model.model.layers.03.x", "model.layers.3"],
)  # fmt: skip
def test_nothing_is_ignored_under_a_family_or_layer_that_does_not_have_it(tmp_path: Path, name: str) -> None:
    family = "deepseek_v3" if name.startswith(("vision", "mm_")) else "kimi_k25"
    with pytest.raises(CheckpointError, match="is unexpected"):
        altered(tmp_path, lambda tensors: tensors.update({name: torch.zeros(1)}), family=family)


def test_known_tensors_without_use_are_ignored_and_counted(tmp_path: Path) -> None:
    spec = tiny_spec(family="kimi_k25", n_mtp=1)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    base = "language_model.model.layers"
    extra = [f"{base}.3.eh_proj.weight", f"{base}.2.self_attn.rotary_emb.inv_freq", "vision_tower.a", "mm_projector.b"]
    tensors |= {name: torch.zeros(5) for name in extra}
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    shares = Checkpoint.open(tmp_path, spec).coverage().shares
    assert Share("ignored", "fp32", 4, 80) in shares


def test_coverage_counts_every_byte_once(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32, Storage.FP8_BLOCK128))
    coverage = checkpoint.coverage()
    one = 3 * (96 * HIDDEN // 2 + 96 * HIDDEN // 16 + 8)
    assert Share("experts", "int4-g32", 2 * N_EXPERTS * 9, 2 * N_EXPERTS * one) in coverage.shares
    assert Share("trunk", "fp32", 2, 2 * N_EXPERTS * 4) in coverage.shares
    assert {(share.kind, share.format) for share in coverage.shares} == {
        ("experts", "int4-g32"), ("trunk", "bf16"), ("trunk", "fp32"), ("trunk", "fp8-128x128"),
    }  # fmt: skip
    assert sum(share.n_tensors for share in coverage.shares) == len(checkpoint.shards)
    total = sum(extent.nbytes for extent in checkpoint.shards.values())
    assert coverage.nbytes("trunk") + coverage.nbytes("experts") == total


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("storage", [Storage.INT4_GROUP32, Storage.FP8_BLOCK128])
def test_a_scale_that_is_not_finite_is_refused_by_name(tmp_path: Path, storage: Storage, value: float) -> None:
    spec = tiny_spec(storage, storage if storage is Storage.FP8_BLOCK128 else Storage.BF16)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    name = "weight_scale" if storage is Storage.INT4_GROUP32 else "weight_scale_inv"
    tensors[f"model.layers.1.mlp.experts.3.up_proj.{name}"][-1, -1] = value
    if storage is Storage.FP8_BLOCK128:
        tensors["model.layers.0.self_attn.o_proj.weight_scale_inv"][0, 0] = value
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    checkpoint = Checkpoint.open(tmp_path, spec)
    with pytest.raises(CheckpointError, match=f"experts.3.up_proj.{name}' holds a scale that is NaN or infinite"):
        expert_values(checkpoint, 1, 3)
    if storage is Storage.FP8_BLOCK128:
        with pytest.raises(CheckpointError, match=r"o_proj.weight_scale_inv' holds a scale"):
            checkpoint.trunk("layers.0.attention.o")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_scales_in_fewer_bits_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    """As Qwen publishes them; the files' order puts some at odd places."""
    spec = tiny_spec(Storage.FP8_BLOCK128, Storage.FP8_BLOCK128)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = tensors[name].to(dtype)
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    checkpoint = Checkpoint.open(tmp_path, spec)

    def wanted(base: str) -> torch.Tensor:
        scales = tensors[f"{base}.weight_scale_inv"].float()
        return kernels.decode(kernels.fp8_matrix(tensors[f"{base}.weight"], scales))

    for layer, expert in [(1, 0), (2, N_EXPERTS - 1)]:
        for part, value in zip(("gate", "up", "down"), expert_values(checkpoint, layer, expert), strict=True):
            assert same(value, wanted(f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj"))
    assert same(checkpoint.trunk("layers.1.attention.o"), wanted("model.layers.1.self_attn.o_proj"))
    with Reader() as reader:
        trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(("layers.1",)))
        with trunk.layer(1) as weights:
            assert same(kernels.decode(weights["attention.o"]), wanted("model.layers.1.self_attn.o_proj"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_scales_in_fewer_bits_that_are_not_finite_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    spec = tiny_spec(Storage.FP8_BLOCK128, Storage.FP8_BLOCK128)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    name = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"
    tensors[name] = torch.full_like(tensors[name], -float("inf")).to(dtype)
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    with pytest.raises(CheckpointError, match=r"experts.3.up_proj.weight_scale_inv' holds a scale that is NaN"):
        expert_values(Checkpoint.open(tmp_path, spec), 1, 3)


def test_zero_and_negative_scales_are_values(tmp_path: Path) -> None:
    spec = tiny_spec(Storage.INT4_GROUP32)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    base = "model.layers.1.mlp.experts.0.gate_proj"
    tensors[f"{base}.weight_scale"][0, :2] = torch.tensor([0.0, -1.0])
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    value = expert_values(Checkpoint.open(tmp_path, spec), 1, 0)[0][0]
    codes = tensors[f"{base}.weight_packed"].view(torch.uint8)[0, 16:32]
    assert (value[:32] == 0).all()
    assert value[32:64:2].tolist() == (8 - (codes & 15).float()).tolist()


def test_a_stored_shape_that_lies_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec(Storage.INT4_GROUP32)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    tensors["model.layers.2.mlp.experts.1.down_proj.weight_shape"] = torch.tensor([HIDDEN, 95], dtype=torch.int32)
    write_checkpoint(tmp_path, tensors.items(), 2**40)
    checkpoint = Checkpoint.open(tmp_path, spec)
    with pytest.raises(CheckpointError, match=r"down_proj.weight_shape' says \[160, 95\], .* \[160, 96\]"):
        expert_values(checkpoint, 2, 1)


def test_an_expert_written_together_is_one_range(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    found = checkpoint.expert_extents(1, 4)
    assert len(found.extents) == 9
    assert [extent.offset for extent in found.extents] == sorted(extent.offset for extent in found.extents)
    (span,) = found.ranges
    assert span.nbytes == found.nbytes == 3 * (96 * HIDDEN // 2 + 96 * HIDDEN // 16 + 8)


def test_an_expert_in_the_order_of_published_shards_is_two_ranges(tmp_path: Path) -> None:
    """The safetensors library sorts by width of dtype, then by name: int32 first, then the bf16 scales."""
    spec = tiny_spec(Storage.INT4_GROUP32)
    tensors = dict(published_tensors(spec, random_tensors(spec)))
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    write_checkpoint(tmp_path, ordered, 2**40)
    found = Checkpoint.open(tmp_path, spec).expert_extents(1, 4)
    assert [span.nbytes for span in found.ranges] == [3 * (96 * HIDDEN // 2 + 8), 3 * 96 * HIDDEN // 16]


def test_an_expert_across_shards_has_a_range_in_each(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(), shard_bytes=96 * HIDDEN * 2)
    assert len({span.file for span in checkpoint.expert_extents(1, 0).ranges}) == 3


def test_names_and_experts_that_the_model_lacks_are_usage_errors(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    with pytest.raises(UsageError, match="not a trunk tensor"):
        checkpoint.trunk("layers.9.router")
    for layer, expert in [(0, 0), (1, N_EXPERTS), (1, -1), (3, 0)]:
        with pytest.raises(UsageError, match="has no routed expert"):
            checkpoint.expert_extents(layer, expert)


def test_the_fingerprint_depends_on_the_model_and_not_on_its_files(tmp_path: Path) -> None:
    spec = tiny_spec(Storage.INT4_GROUP32)
    one = open_tiny(tmp_path / "one", spec).fingerprint()
    assert one == open_tiny(tmp_path / "two", spec, shard_bytes=100_000).fingerprint()
    assert len(one) == 64
    others = [
        open_tiny(tmp_path / "seed", spec, seed=1).fingerprint(),
        open_tiny(tmp_path / "storage", tiny_spec()).fingerprint(),
        open_tiny(tmp_path / "family", tiny_spec(Storage.INT4_GROUP32, family="kimi_k2")).fingerprint(),
    ]
    for name in ("model.norm.weight", "model.layers.2.mlp.gate.e_score_correction_bias"):
        tensors = dict(published_tensors(spec, random_tensors(spec)))
        tensors[name][3] += 1
        write_checkpoint(tmp_path / name, tensors.items(), 2**40)
        others.append(Checkpoint.open(tmp_path / name, spec).fingerprint())
    assert len({one, *others}) == 6


def test_the_fingerprint_sees_every_experts_layer_and_the_ends_of_a_long_tensor(tmp_path: Path) -> None:
    spec = tiny_spec(Storage.INT4_GROUP32)
    prints = {open_tiny(tmp_path / "plain", spec).fingerprint()}
    for index, name in enumerate(("layers.2.mlp.experts.0.up_proj.weight_scale", "layers.0.mlp.gate_proj.weight")):
        tensors = dict(published_tensors(spec, random_tensors(spec)))
        tensors[f"model.{name}"][-1, -1] += 1
        write_checkpoint(tmp_path / str(index), tensors.items(), 2**40)
        prints.add(Checkpoint.open(tmp_path / str(index), spec).fingerprint())
    assert len(prints) == 3


def test_extents_of_two_files_never_merge(tmp_path: Path) -> None:
    """Not even where the second continues at the offset at which the first ends."""
    extents = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32)).expert_extents(1, 0)
    last, (gate, (packed, *rest)) = extents.extents[-1], extents.parts[0]
    moved = replace(packed, file=tmp_path / "other", offset=last.offset + last.nbytes)
    split = replace(extents, parts=((gate, (moved, *rest)), *extents.parts[1:]))
    assert [span.file.name for span in split.ranges] == ["model.safetensors", "other"]


def test_a_shape_tensor_of_newer_libraries_is_read(tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_shape")]:
            tensors[name] = tensors[name].long()

    altered(tmp_path, widen)


def test_the_layer_after_those_that_predict_ahead_is_unexpected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is unexpected"):
        altered(tmp_path, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(1)}))
