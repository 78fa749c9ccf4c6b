"""Sizes from a spec: those of the files' headers, never less than the memory used, and hardly more."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from earthshine.engine.load import read_trunk
from earthshine.engine.sizes import stored_sizes
from earthshine.hub import GLEAM
from earthshine.kernels import Matrix, Weight
from earthshine.plan import sizes_of
from earthshine.spec import ModelSpec, load_spec, spec_from_config
from earthshine.spec.layout import trunk_tensors
from earthshine.weights import Checkpoint, Reader, StoredTrunk, slot_bytes, units

from .made_up import QWEN3, STORAGES, k2_6, made, written, written_qwen3

PAGE = 4096
WAYS = [("bf16", "bf16"), ("fp32", "bf16"), ("bf16", "int8")]


def opened(folder: Path, what: str) -> Checkpoint:
    if what == "qwen3":
        return written_qwen3(folder)
    return Checkpoint.open(GLEAM, load_spec(GLEAM)) if what == "gleam" else written(folder, what)


def held(weights: list[Weight]) -> int:
    """Bytes of all memory that the weights lie in."""
    parts = [part for one in weights for part in ([one.codes, one.scales] if isinstance(one, Matrix) else [one])]
    memory = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts if part is not None}
    return sum(memory.values())


@pytest.mark.parametrize("what", [*STORAGES, "gleam", "qwen3"])
def test_files_that_store_what_their_config_says_take_what_is_counted(tmp_path: Path, what: str) -> None:
    checkpoint = opened(tmp_path, what)
    for dtype, trunk in WAYS:
        sizes = sizes_of(checkpoint.spec, dtype, trunk)
        assert stored_sizes(checkpoint, dtype, trunk) == sizes
        for name, unit in units(checkpoint).items():
            assert unit.nbytes <= sizes.streamed_units[name], (dtype, trunk, name)
        assert list(sizes.units)[: len(units(checkpoint))] == list(units(checkpoint)), "in the order of a pass"


@pytest.mark.parametrize("what", [*STORAGES, "gleam", "qwen3"])
def test_hardly_more_is_counted_than_the_files_take(tmp_path: Path, what: str) -> None:
    """A few pages a published tensor: the writer's files begin tensors anywhere."""
    checkpoint = opened(tmp_path, what)
    sizes = sizes_of(checkpoint.spec)
    for name, unit in units(checkpoint).items():
        n_tensors = sum(len(placed.parts) for placed in unit.placed)
        assert sizes.streamed_units[name] - unit.nbytes <= 4 * PAGE * n_tensors
    assert 0 <= sizes.expert - slot_bytes(checkpoint) <= PAGE
    assert sizes.expert % PAGE == 0


@pytest.mark.parametrize("what", ["bf16", "fp8", "int4", "qwen3"])
def test_a_rounded_trunk_holds_what_is_counted(tmp_path: Path, what: str) -> None:
    checkpoint = opened(tmp_path, what)
    sizes = sizes_of(checkpoint.spec, trunk="int8")
    with Reader() as reader:
        trunk = StoredTrunk(checkpoint, reader, int8=True)
        for index in range(3):
            with trunk.layer(index) as layer:
                assert held(list(layer.values())) == sizes.units[f"layers.{index}"]
        with trunk.head() as head:
            assert held([head]) == sizes.units["head"]


@pytest.mark.parametrize("what", ["bf16", "fp8", "int4", "qwen3"])
def test_a_trunk_in_fp32_holds_what_is_counted(tmp_path: Path, what: str) -> None:
    checkpoint = opened(tmp_path, what)
    sizes = sizes_of(checkpoint.spec, dtype="fp32")
    trunk = read_trunk(checkpoint, torch.float32)
    for name, counted in sizes.units.items():
        assert held([value for key, value in trunk.items() if key == name or key.startswith(f"{name}.")]) == counted
    assert sum(sizes.units.values()) == held(list(trunk.values())) - held([trunk["norm"]])
    assert sizes.embedding == 0, "it is a unit then, and stays"


def test_files_in_fp32_take_more_and_their_headers_say_so(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, widen=True)
    for dtype, trunk in WAYS:
        plain, sizes = sizes_of(checkpoint.spec, dtype, trunk), stored_sizes(checkpoint, dtype, trunk)
        for name, unit in units(checkpoint).items():
            assert sizes.streamed_units[name] == unit.nbytes > plain.streamed_units[name]
            assert sizes.units[name] >= plain.units[name]
        assert sizes.expert == slot_bytes(checkpoint) > plain.expert
        assert (sizes.activation, sizes.kept, sizes.embedding) == (plain.activation, plain.kept, plain.embedding)
        assert (sizes.loading > plain.loading) == (plain.loading > 0)
    resident = stored_sizes(checkpoint, "bf16", "bf16")
    assert {name: resident.streamed_units[name] for name in resident.units} == resident.units


def test_tensors_at_odd_bytes_need_room_for_a_copy(tmp_path: Path) -> None:
    """A header of odd length leaves no bf16 value where it can be used as it lies."""
    checkpoint = written(tmp_path, shard_bytes=1 << 40)
    plain = sizes_of(checkpoint.spec)
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])
    moved = Checkpoint.open(tmp_path, checkpoint.spec)
    sizes = stored_sizes(moved, "bf16", "bf16")
    for name, unit in units(moved).items():
        assert unit.nbytes <= sizes.streamed_units[name]
    assert sizes.streamed_units["head"] > 1.5 * plain.streamed_units["head"]


def test_what_attention_takes_apart_is_decoded_and_counted_so(tmp_path: Path) -> None:
    """kv_b of 32 heads by 256 is 0.5 MiB in bf16, far more than the pages that are counted beside each tensor."""
    shape = {"kv_lora_rank": 256, "num_attention_heads": 32, "num_key_value_heads": 32}
    checkpoint = written(tmp_path, "fp8", **shape)
    sizes = sizes_of(checkpoint.spec)
    assert stored_sizes(checkpoint, "bf16", "bf16") == sizes
    for name, unit in units(checkpoint).items():
        assert unit.nbytes <= sizes.streamed_units[name]
    assert sizes.units["layers.1"] > 3 * 32 * 32 * 256, "its bytes as published, and twice as many decoded"


def test_at_least_never_lowers_anything() -> None:
    sizes = sizes_of(made(), trunk="int8")
    assert sizes.at_least({}, 0) == sizes
    assert sizes.at_least({name: size for name, size in sizes.streamed_units.items()}, sizes.expert) == sizes
    more = sizes.at_least({"layers.1": sizes.streamed_units["layers.1"] + 500, "unheard-of": 10**9}, sizes.expert + 1)
    assert more == replace(
        sizes,
        units={**sizes.units, "layers.1": sizes.units["layers.1"] + 500},
        streamed_units={**sizes.streamed_units, "layers.1": sizes.streamed_units["layers.1"] + 500},
        expert=sizes.expert + 1,
        loading=sizes.loading + 500,
    )


def test_k2_6_by_hand(shared_data: Path) -> None:
    spec = k2_6(shared_data)
    sizes = sizes_of(spec)
    assert sizes.experts == (384,) * 60
    assert sizes.expert == 24_850_432  # 24,772,632 published and two pages for each of nine tensors, in whole pages
    assert sizes.kept == 61 * (512 + 64) * 2
    assert sizes.embedding == sizes.streamed_units["embed"] == 2 * 163_840 * 7168
    assert sizes.logits == 16 * 163_840
    assert sizes.units == {name: size for name, size in sizes.streamed_units.items() if name != "embed"}
    assert sizes.activation == 2 * (4 * 7168 + 7168 + 3 * 18_432), "the dense layer is the widest"
    assert list(sizes.units) == [*(f"layers.{i}" for i in range(61)), "head"]
    assert (sizes.loading, sizes.gathered) == (0, 0)
    published = sum(2 * t.size for t in trunk_tensors(spec) if t.name not in ("embed", "norm"))
    assert published < sum(sizes.units.values()) < 1.002 * published, "pages cost 0.2% at most"
    assert 0.50 < sum(sizes_of(spec, trunk="int8").units.values()) / published < 0.55


def test_what_is_loaded_in_another_form_needs_more_than_what_stays() -> None:
    """int8: the largest part first, as published beside what it becomes. fp32: the last, a head in bf16 beside all."""
    spec = made(vocab_size=4000)
    rounded = sizes_of(spec, trunk="int8")
    assert rounded.loading == rounded.units["head"] + rounded.streamed_units["head"]
    small = sizes_of(made(), trunk="int8")
    last = min(small.units, key=lambda name: small.streamed_units[name])
    assert small.loading >= sum(small.units.values()) + small.streamed_units[last]
    wide = sizes_of(spec, dtype="fp32")
    whole = sum(wide.units.values()) + 4 * spec.hidden
    assert whole + 2 * 4000 * 160 <= wide.loading <= whole + 2 * 4000 * 160 + 4 * PAGE


def by_hand(spec: ModelSpec, inner: int) -> int:
    return 4 * spec.hidden + spec.hidden + inner * 8192


def test_fp32_counts_what_its_kernels_copy() -> None:
    """Five times the inner width of a dense layer, and of an expert, should all tokens choose one; a context's latents
    once as they are gathered, and once each as keys and as values."""
    spec = made(intermediate_size=8192)
    bf16, fp32 = sizes_of(spec), sizes_of(spec, dtype="fp32")
    assert (bf16.activation, fp32.activation) == (2 * by_hand(spec, 3), 4 * by_hand(spec, 5))
    assert fp32.kept == 2 * bf16.kept
    assert fp32.gathered == 4 * (40 + 40 + 32)
    lone = made(moe_intermediate_size=4096, n_shared_experts=0)
    assert sizes_of(lone, dtype="fp32").activation == 4 * (4 * 160 + 4 * 160 + 160 + 5 * 4096 + 4 * 16 + 16 * 4)


def test_grouped_query_attention_by_hand() -> None:
    """Keys and values of 2 heads of 48 in 3 layers; the wider of attention and experts at once."""
    spec = spec_from_config(QWEN3)
    bf16, fp32 = sizes_of(spec), sizes_of(spec, dtype="fp32")
    assert (bf16.kept, fp32.kept) == (2 * 3 * 2 * 2 * 48, 4 * 3 * 2 * 2 * 48)
    assert bf16.activation == 2 * (4 * 160 + (3 * 4 + 6 * 2) * 48)
    assert fp32.gathered == 4 * 4 * 2 * 48


def test_a_model_without_experts_has_no_slots() -> None:
    spec = made()
    dense = replace(spec, layers=spec.layers[:1] * 3)
    for dtype, trunk in WAYS:
        sizes = sizes_of(dense, dtype, trunk)
        assert (sizes.expert, sizes.experts) == (0, ())
        assert sizes.units["layers.0"] == sizes.units["layers.2"] > 0
