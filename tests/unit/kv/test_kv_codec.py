"""The stored form of a sequence's state: it is read back unchanged, or refused with BlobError."""

import dataclasses
import io
import struct

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.errors import BlobError
from earthshine.kv import (
    BlobHeader,
    BlobLayout,
    BlobReader,
    BlobWriter,
    KVBlob,
    Part,
    ValueFormat,
    read_header,
)

PRIOR = bytes(range(1, 33))
PARTS = tuple(Part(layer, 6) for layer in range(3))


def make_blob(form=ValueFormat.BF16, n_tokens=5, pending=0, tail_dim=6, layers=3, width=6) -> KVBlob:
    generator = torch.Generator().manual_seed(7)
    layout = BlobLayout("moon-1", form, tuple(Part(layer, width) for layer in range(layers)))
    header = BlobHeader(layout, n_tokens, tuple(range(100, 100 + n_tokens + pending)), tail_dim)
    latents = tuple(torch.randn(n_tokens, width, generator=generator).to(form.dtype) for _ in range(layers))
    tail = torch.randn(tail_dim, generator=generator).to(form.dtype) if tail_dim else None
    return KVBlob(header, latents, tail)


def same(one: KVBlob, other: KVBlob) -> bool:
    tails = [torch.empty(0) if blob.tail is None else blob.tail for blob in (one, other)]
    pairs = zip((*one.parts, tails[0]), (*other.parts, tails[1]), strict=True)
    return one.header == other.header and all(a.dtype is b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ValueFormat)
@pytest.mark.parametrize(("n_tokens", "pending", "tail_dim"), [(5, 0, 6), (5, 1, 0), (0, 0, 0), (0, 1, 0), (1, 0, 0)])
def test_blob_is_read_back_unchanged(form, n_tokens, pending, tail_dim):
    blob = make_blob(form, n_tokens, pending, tail_dim)
    data = blob.to_bytes()
    assert len(data) == blob.header.blob_bytes
    assert same(KVBlob.from_bytes(data), blob)


def test_layers_larger_than_one_chunk_come_back():
    blob = make_blob(ValueFormat.FP32, n_tokens=5000, width=64, layers=1)
    assert blob.header.part_bytes(0) > 1 << 20
    assert same(KVBlob.from_bytes(blob.to_bytes()), blob)


def test_bits_survive_that_are_not_numbers():
    bits = torch.tensor([[0x7FC1, 0x0001, -0x8000, 0x7F80]], dtype=torch.int16)
    header = BlobHeader(BlobLayout("m", ValueFormat.BF16, (Part(0, 4),)), 1, (9,), 0)
    back = KVBlob.from_bytes(KVBlob(header, (bits.view(torch.bfloat16),), None).to_bytes())
    assert torch.equal(back.parts[0].view(torch.int16), bits)


def test_the_bytes_are_those_of_the_description():
    """Assembled by hand from the module's table, for one layer of two tokens in fp32 with a tail."""
    layer, tail = [[1.0, -2.0], [0.5, 4.0]], [8.0, 16.0, 32.0]
    header = BlobHeader(BlobLayout("é", ValueFormat.FP32, (Part(7, 2),)), 2, (7, 65536), 3, 640, PRIOR)
    file = io.BytesIO()
    writer = BlobWriter(file, header)
    writer.part(0, torch.tensor(layer))
    writer.tail(torch.tensor(tail))
    start = b"ESHKV\r\n\x1a" + struct.pack("<II", 5, 64 + 2 + 12 + 8)
    start += struct.pack("<7I", 2, 1, 640, 2, 2, 3, 1) + PRIOR + struct.pack("<I", 2)
    start += "é".encode() + struct.pack("<3I", 7, 1, 2) + struct.pack("<2I", 7, 65536)
    seal = blake3(start).digest()[:16]
    expected = start + seal
    for index, values in ((0, struct.pack("<4f", 1.0, -2.0, 0.5, 4.0)), (1, struct.pack("<3f", *tail))):
        block = struct.pack("<I", index) + values
        expected += block + blake3(seal + block).digest()[:16]
    assert file.getvalue() == expected
    assert len(expected) == header.blob_bytes


def piece(blob: KVBlob, start: int, prior: bytes) -> bytes:
    """The same latents as a piece of a conversation that other tokens begin."""
    file = io.BytesIO()
    writer = BlobWriter(file, dataclasses.replace(blob.header, start=start, prior=prior))
    for index, latents in enumerate(blob.parts):
        writer.part(index, latents)
    if blob.tail is not None:
        writer.tail(blob.tail)
    writer.close()
    return file.getvalue()


def test_piece_is_read_back_with_its_position_but_not_as_a_whole_sequence():
    blob = make_blob()
    data = piece(blob, 640, PRIOR)
    reader = BlobReader(io.BytesIO(data), len(data))
    assert (reader.header.start, reader.header.prior) == (640, PRIOR)
    assert reader.header.token_ids == (100, 101, 102, 103, 104)
    assert all(torch.equal(*pair) for pair in zip(reader.parts(), blob.parts, strict=True))
    assert torch.equal(reader.tail(), blob.tail)
    with pytest.raises(BlobError, match="follows 640 tokens that it lacks"):
        KVBlob.from_bytes(data)


def test_a_first_piece_may_say_whose_it_is():
    blob = make_blob()
    back = KVBlob.from_bytes(piece(blob, 0, PRIOR))
    assert (back.header.start, back.header.prior) == (0, PRIOR)
    assert back.to_bytes() != blob.to_bytes()


def test_a_layer_of_the_same_tokens_elsewhere_does_not_fit():
    """The header's digest begins every checksum, so a block is bound to its place in the conversation."""
    blob = make_blob(tail_dim=0)
    here, there = piece(blob, 640, PRIOR), piece(blob, 704, PRIOR)
    last = 4 + blob.header.part_bytes(0) + 16
    mixed = here[:-last] + there[-last:]
    with pytest.raises(BlobError, match="checksum of part 2"):
        list(BlobReader(io.BytesIO(mixed), len(mixed)).parts())


def test_every_truncation_is_refused():
    data = make_blob().to_bytes()
    for end in range(len(data)):
        with pytest.raises(BlobError, match=r"trunc"):
            KVBlob.from_bytes(data[:end])


def test_trailing_bytes_are_refused():
    with pytest.raises(BlobError, match="followed by bytes"):
        KVBlob.from_bytes(make_blob().to_bytes() + b"\0")


def test_every_changed_bit_is_refused():
    """Each byte with one bit flipped; the bit goes round so that all eight are met."""
    data = bytearray(make_blob().to_bytes())
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        with pytest.raises(BlobError):
            KVBlob.from_bytes(bytes(data))
        data[position] ^= 1 << position % 8


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_of_many_bytes_never_yield_other_data(data):
    original = make_blob()
    raw = bytearray(original.to_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    if data.draw(st.booleans()):
        raw[cut:cut] = data.draw(st.binary(max_size=9))
    try:
        back = KVBlob.from_bytes(bytes(raw))
    except BlobError:
        return
    assert bytes(raw) == original.to_bytes()
    assert same(back, original)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_only_blob_errors(raw, with_magic):
    with pytest.raises(BlobError):
        KVBlob.from_bytes((b"ESHKV\r\n\x1a\x02\0\0\0" if with_magic else b"") + raw)


def resealed(
    code: int = 1,
    start: int = 0,
    n_tokens: int = 0,
    n_ids: int | None = None,
    tail_dim: int = 0,
    *,
    parts: tuple[tuple[int, int, int], ...] = ((0, 1, 2),),
    n_parts: int | None = None,
    name: bytes = b"m",
    name_bytes: int | None = None,
    ids: tuple[int, ...] = (),
    extra: bytes = b"",
    flags: int = 1,
) -> bytes:
    """A header with any numbers at all and the right checksum, as a hostile peer would send it."""
    counts = (len(parts) if n_parts is None else n_parts, start, n_tokens, len(ids) if n_ids is None else n_ids)
    fixed = struct.pack(
        "<7I32sI", code, *counts, tail_dim, flags, bytes(32), len(name) if name_bytes is None else name_bytes
    )
    body = fixed + name + b"".join(struct.pack("<3I", *part) for part in parts)
    body += struct.pack(f"<{len(ids)}I", *ids) + extra
    head = b"ESHKV\r\n\x1a" + struct.pack("<II", 5, len(body)) + body
    return head + blake3(head).digest()[:16]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (resealed(code=3), "value format 3"),
        (resealed(parts=()), "1 to 16384 parts, so 0 are impossible"),
        (resealed(parts=((0, 1, 1),) * 16385), "1 to 16384 parts"),
        (resealed(n_parts=1 << 31), "length that its own numbers give"),
        (resealed(parts=((4096, 1, 1),)), "layer must be between 0 and 4095"),
        (resealed(parts=((1, 1, 1), (0, 1, 1))), "follow each other by layer"),
        (resealed(parts=((0, 4, 1),)), "unknown kind 4"),
        (resealed(flags=2), "unknown flags, 2"),
        (resealed(parts=((0, 1, 0),)), "width must be between 1"),
        (resealed(parts=((0, 1, 1 << 30),)), "width must be between 1"),
        (resealed(n_tokens=1 << 31), "n_tokens"),
        (resealed(tail_dim=1 << 31), "tail_dim"),
        (resealed(n_ids=1 << 31), "length that its own numbers give"),
        (resealed(name_bytes=1 << 31), "length that its own numbers give"),
        (resealed(extra=b"x"), "length that its own numbers give"),
        (resealed(n_tokens=3, ids=(5,)), "3 tokens were computed, but 1"),
        (resealed(ids=(5, 6)), "0 tokens were computed, but 2"),
        (resealed(ids=(5,), tail_dim=4), "no tail"),
        (resealed(tail_dim=4), "no tail"),
        (resealed(name=b""), "fingerprint"),
        (resealed(name=b"m" * 257), "fingerprint"),
        (resealed(name=b"\xff\xfe"), "UTF-8"),
        (resealed(start=1 << 25), "start must be between 0 and 16777216"),
        (resealed(start=5), "follows 5 tokens, but does not name them"),
        (resealed(n_tokens=1, ids=(5,), parts=((0, 1, 65536),) * 4096), "truncated or too large"),
    ],
)
def test_a_hostile_header_is_refused_for_what_it_says(raw, message):
    with pytest.raises(BlobError, match=message):
        KVBlob.from_bytes(raw)


def test_an_unknown_version_and_a_foreign_file_are_named():
    data = make_blob().to_bytes()
    with pytest.raises(BlobError, match="version 1; this Earthshine reads version 5"):
        KVBlob.from_bytes(data[:8] + struct.pack("<I", 1) + data[12:])
    with pytest.raises(BlobError, match="not a sequence's stored state"):
        KVBlob.from_bytes(b"\x7fELF" + data)


def test_blocks_can_be_neither_exchanged_nor_taken_from_another_blob():
    data, header = make_blob(n_tokens=1), make_blob(n_tokens=1).header
    raw = data.to_bytes()
    block = 4 + header.part_bytes(0) + 16
    first = len(raw) - 3 * block - (4 + header.tail_bytes + 16)
    swapped = raw[:first] + raw[first + block : first + 2 * block] + raw[first : first + block]
    with pytest.raises(BlobError, match="checksum of part 0"):
        KVBlob.from_bytes(swapped + raw[first + 2 * block :])
    other = KVBlob(BlobHeader(header.layout, 1, (555,), 6), data.parts, data.tail).to_bytes()
    with pytest.raises(BlobError, match="checksum of part 1"):
        KVBlob.from_bytes(raw[: first + block] + other[first + block :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "moon-2"}, "belongs to the model 'moon-1'; this one is 'moon-2'"),
        ({"format": ValueFormat.FP32}, "values are bf16, but this model's are fp32"),
        ({"parts": PARTS[:2]}, "has 3 parts, but this model keeps 2"),
        (
            {"parts": (*PARTS[:2], Part(2, 5))},
            "is 6 values per token in layer 2, .* keeps 5 values per token in layer 2",
        ),
        ({"parts": (*PARTS[:2], Part(3, 6))}, "in layer 2, but this model keeps 6 values per token in layer 3"),
    ],
)
def test_another_model_or_layout_is_named(change, message):
    mine = {"fingerprint": "moon-1", "format": ValueFormat.BF16, "parts": PARTS}
    theirs = make_blob().header.layout
    theirs.require(BlobLayout(**mine))
    with pytest.raises(BlobError, match=message):
        theirs.require(BlobLayout(**{**mine, **change}))


def test_layers_are_readable_before_the_rest_is_written():
    """The writer puts out each layer whole, so a receiver can use it while the next is computed."""
    blob, file = make_blob(), io.BytesIO()
    writer = BlobWriter(file, blob.header)
    for index, latents in enumerate(blob.parts):
        writer.part(index, latents)
        reader = BlobReader(io.BytesIO(file.getvalue()), limit_bytes=1 << 20)
        received = reader.parts()
        assert all(torch.equal(next(received), blob.parts[i]) for i in range(index + 1))
        with pytest.raises(BlobError, match="truncated"):
            next(received) if index < 2 else reader.tail()


def test_the_header_can_be_read_alone():
    assert read_header(io.BytesIO(make_blob().to_bytes()[:170]), 1 << 20) == make_blob().header


def test_a_blob_beyond_the_readers_limit_is_refused_before_its_layers():
    blob = make_blob()
    with pytest.raises(BlobError, match="too large"):
        BlobReader(io.BytesIO(blob.to_bytes()), limit_bytes=blob.header.blob_bytes - 1)


def test_no_more_is_read_of_a_header_than_the_limit_allows():
    class Endless(io.BytesIO):
        given = 0

        def read(self, size=-1):
            part = super().read(size) or bytes(size)
            self.given += len(part)
            return part

    file = Endless(b"ESHKV\r\n\x1a" + struct.pack("<II", 5, 60_000_000))
    with pytest.raises(BlobError, match="can't have 60000000 bytes"):
        BlobReader(file, limit_bytes=1000)
    assert file.given <= 1000


def test_a_file_that_gives_a_byte_at_a_time_is_read():
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1))

    blob = make_blob()
    assert same(KVBlob.read(Slow(blob.to_bytes()), 1 << 20), blob)


def test_the_writer_refuses_layers_out_of_order_missing_or_misshapen():
    blob = make_blob()
    writer = BlobWriter(io.BytesIO(), blob.header)
    with pytest.raises(BlobError, match="Part 1 is out of order; part 0"):
        writer.part(1, blob.parts[1])
    with pytest.raises(BlobError, match=r"\[5, 6\] values"):
        writer.part(0, blob.parts[0][:4])
    with pytest.raises(BlobError, match=r"torch\.float32"):
        writer.part(0, blob.parts[0].float())
    with pytest.raises(BlobError, match="part 0 was not written"):
        writer.close()
    for index, latents in enumerate(blob.parts):
        writer.part(index, latents)
    with pytest.raises(BlobError, match="the tail was not written"):
        writer.close()
    writer.tail(blob.tail)
    writer.close()
    with pytest.raises(BlobError, match="nothing comes next"):
        writer.tail(blob.tail)


def test_values_that_contradict_their_header_are_refused():
    blob = make_blob()
    for layers, tail in ((blob.parts[:2], blob.tail), (blob.parts, None), (blob.parts, blob.tail[:5])):
        with pytest.raises(BlobError):
            KVBlob(blob.header, layers, tail)
    with pytest.raises(BlobError, match="no stored form"):
        ValueFormat.of(torch.float16)
    with pytest.raises(BlobError, match="Unicode"):
        BlobLayout("\ud800", ValueFormat.BF16, (Part(0, 1),))
    with pytest.raises(BlobError, match="token id"):
        BlobHeader(blob.header.layout, 1, (-1,), 0)
    with pytest.raises(BlobError, match="named by 32 bytes, not 3"):
        BlobHeader(blob.header.layout, 1, (1,), 0, 64, b"abc")
    with pytest.raises(BlobError, match="does not name them"):
        BlobHeader(blob.header.layout, 1, (1,), 0, 64)


def test_a_saved_state_is_loaded_and_replaces_the_one_before(tmp_path):
    path, blob = tmp_path / "state", make_blob()
    make_blob(n_tokens=1).save(path)
    blob.save(path)
    assert same(KVBlob.load(path), blob)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_failed_save_leaves_the_old_state_and_no_temporary_file(tmp_path, monkeypatch):
    path, old = tmp_path / "state", make_blob(n_tokens=1)
    old.save(path)

    def fail(self, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KVBlob, "write", fail)
    with pytest.raises(BlobError, match="No space left"):
        make_blob().save(path)
    monkeypatch.undo()
    assert same(KVBlob.load(path), old)
    assert len(list(tmp_path.iterdir())) == 1


def test_absent_damaged_and_impossible_paths_are_blob_errors(tmp_path):
    with pytest.raises(BlobError, match="can't be opened"):
        KVBlob.load(tmp_path / "absent")
    with pytest.raises(BlobError, match="not a regular file"):
        KVBlob.load(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BlobError, match="can't be opened: Too many levels"):
        KVBlob.load(tmp_path / "loop")
    with pytest.raises(BlobError, match="could not be written"):
        make_blob().save(tmp_path / "no folder" / "state")
    (tmp_path / "cut").write_bytes(make_blob().to_bytes()[:-1])
    with pytest.raises(BlobError, match="truncated"):
        KVBlob.load(tmp_path / "cut")
