"""The stored form of recurrent states: they follow the rows, each in its own format, or are left out."""

import pytest
import torch

from earthshine.errors import BlobError
from earthshine.kv import BlobHeader, BlobLayout, KVBlob, Part, PartKind, ValueFormat

STATES = (Part(0, 6), Part(1, 8, PartKind.STATE_FP32), Part(1, 3, PartKind.STATE))


def test_recurrent_states_follow_the_rows_in_their_own_formats():
    layout = BlobLayout("moon-1", ValueFormat.BF16, STATES)
    header = BlobHeader(layout, 2, (7, 8), 0)
    parts = (torch.randn(2, 6).bfloat16(), torch.randn(8), torch.randn(3).bfloat16())
    blob = KVBlob(header, parts, None)
    assert len(blob.to_bytes()) == header.blob_bytes
    back = KVBlob.from_bytes(blob.to_bytes())
    assert back.header == header
    assert all(
        one.dtype is other.dtype and torch.equal(one, other) for one, other in zip(back.parts, parts, strict=True)
    )
    with pytest.raises(BlobError, match=r"\[8\] values in torch.float32 was announced"):
        KVBlob(header, (parts[0], parts[1].bfloat16(), parts[2]), None)
    with pytest.raises(BlobError, match="3 values of recurrent state in layer 1, but this model keeps 4 values of"):
        layout.require(BlobLayout("moon-1", ValueFormat.BF16, (*STATES[:2], Part(1, 4, PartKind.STATE))))


def test_a_piece_may_leave_its_states_out_and_an_empty_one_has_none():
    layout = BlobLayout("moon-1", ValueFormat.BF16, STATES)
    assert BlobHeader(layout, 2, (7, 8), 0, with_states=False).stored == [0]
    assert BlobHeader(layout, 0, (), 0).stored == [0]
    with pytest.raises(BlobError, match="lacks its recurrent states"):
        KVBlob(BlobHeader(layout, 1, (7,), 0, with_states=False), (torch.zeros(1, 6).bfloat16(),), None)
    assert BlobHeader(layout, 2, (7, 8), 0).stored == [0, 1, 2]
