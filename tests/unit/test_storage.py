"""Bytes of stored matrices and of the buffers that they are read into, by hand."""

import pytest

from earthshine.errors import UsageError
from earthshine.storage import (
    QUANTISED,
    Storage,
    aligned,
    matrix_bytes,
    matrix_parts,
    padded,
    page_count,
    scattered,
    stored_bytes,
)


@pytest.mark.parametrize(
    ("storage", "tensors"),
    [
        (Storage.BF16, [((130, 160), 130 * 160 * 2)]),
        (Storage.FP8_BLOCK128, [((130, 160), 130 * 160), ((2, 2), 2 * 2 * 4)]),
        (Storage.INT4_GROUP32, [((130, 20), 130 * 80), ((130, 5), 130 * 5 * 2), ((2,), 8)]),
        (Storage.INT8_GROUP128, [((130, 160), 130 * 160), ((130, 2), 130 * 2 * 4)]),
    ],
)
def test_a_matrix_has_the_tensors_of_its_format(storage: Storage, tensors: list[tuple[tuple[int, ...], int]]) -> None:
    assert [(part.shape, part.nbytes) for part in matrix_parts(storage, 130, 160)] == tensors
    assert stored_bytes(storage, 130, 160) == sum(nbytes for _, nbytes in tensors)
    scales = tensors[1][1] if len(tensors) > 1 else 0
    assert matrix_bytes(storage, 130, 160) == (tensors[0][1], scales)


def test_an_expert_of_kimi_k2_6_has_its_published_bytes() -> None:
    gate_up, down = ((2048, 7168), (7168, 2048))
    assert 2 * stored_bytes(Storage.INT4_GROUP32, *gate_up) + stored_bytes(Storage.INT4_GROUP32, *down) == 24_772_632


@pytest.mark.parametrize(
    ("storage", "rows", "cols"),
    [(Storage.INT4_GROUP32, 1, 33), (Storage.BF16, -1, 32), (Storage.FP8_BLOCK128, 1, -32)],
)
def test_a_shape_that_a_format_cannot_hold_is_refused_by_its_name(storage: Storage, rows: int, cols: int) -> None:
    for function in (matrix_parts, stored_bytes, matrix_bytes):
        with pytest.raises(UsageError, match=f"{rows} by {cols} can't be stored as {storage}"):
            function(storage, rows, cols)


def test_formats_are_named_by_the_type_of_their_values() -> None:
    assert [storage.value_type for storage in Storage] == ["bf16", "int4", "fp8", "int8"]
    assert {storage.value_type for storage in QUANTISED} == {"fp8", "int4"}


def test_a_buffer_begins_and_ends_at_aligned_bytes() -> None:
    assert [aligned(nbytes) for nbytes in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert (padded(4095, 2), padded(0, 4096), padded(5, 0)) == (8192, 4096, 4096)
    for offsets in ((0, 0), (1, 4095), (4095, 4095)):
        assert sum(padded(offset, 5000) for offset in offsets) <= scattered(10_000, 2)


def test_pages_hold_64_tokens() -> None:
    assert [page_count(n) for n in (0, 1, 64, 65)] == [0, 1, 1, 2]
