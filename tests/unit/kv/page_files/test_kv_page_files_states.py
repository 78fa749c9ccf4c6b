"""Pages of models with recurrent layers on disk: with the state after them, or without it until one is kept."""

import pytest
import torch

from earthshine.errors import UsageError
from earthshine.kv import BlobLayout, PageParts, Part, PartKind, ValueFormat

from .conftest import PAGE_TOKENS, PAGES, path_of

LAYOUT = BlobLayout(
    "moon-1", ValueFormat.BF16, (Part(0, 8, PartKind.STATE_FP32), Part(0, 3, PartKind.STATE), Part(1, 6))
)
ROWS = [torch.randn(PAGE_TOKENS, 6).bfloat16()]
STATE = [torch.randn(2, 4), torch.randn(3).bfloat16()]  # in the shapes that a slot has
WHOLE, BARE = PageParts(ROWS, STATE), PageParts(ROWS)


def put(files, page, parts: PageParts) -> bool:
    kept: list[bool] = []
    files.write(*page.named, lambda: parts, kept.append, with_state=parts.state is not None)
    assert files.flush(60)
    return kept[0]


def same(found: PageParts | None, parts: PageParts) -> bool:
    assert found is not None
    given = [*parts.rows, *(part.flatten() for part in parts.state or ())]
    read = [*found.rows, *(found.state or ())]
    return len(read) == len(given) and all(map(torch.equal, read, given))


def test_page_comes_back_with_or_without_its_state_over_a_restart(make_files):
    files = make_files(layout=LAYOUT)
    assert put(files, PAGES[0], WHOLE)
    assert put(files, PAGES[1], BARE)
    for _ in range(2):
        assert same(files.read(*PAGES[0].named), WHOLE)
        assert same(files.read(*PAGES[1].named), BARE)
        assert [files.has_state(page.key) for page in PAGES[:3]] == [True, False, False]
        assert PAGES[1].key in files
        files.close()
        files = make_files(layout=LAYOUT)
    assert (files.stats.pages, files.stats.damaged) == (2, 0)


def test_page_is_replaced_once_its_state_is_kept_and_not_the_other_way(make_files, tmp_path):
    files = make_files(layout=LAYOUT)
    assert put(files, PAGES[0], BARE)
    assert put(files, PAGES[0], WHOLE)
    assert same(files.read(*PAGES[0].named), WHOLE)
    assert put(files, PAGES[0], BARE)
    assert put(files, PAGES[0], WHOLE)
    assert same(files.read(*PAGES[0].named), WHOLE)
    assert files.stats.pages_written == 2
    assert files.stats.bytes == path_of(tmp_path / "cache", PAGES[0]).stat().st_blocks * 512


def test_file_whose_length_and_header_disagree_is_damaged(make_files, tmp_path):
    files = make_files(layout=LAYOUT)
    put(files, PAGES[0], WHOLE)
    put(files, PAGES[1], BARE)
    first, second = (path_of(tmp_path / "cache", page) for page in PAGES[:2])
    bare, whole = second.read_bytes(), first.read_bytes()
    first.write_bytes(whole[: len(bare)])
    second.write_bytes(bare + bytes(len(whole) - len(bare)))
    files.close()
    files = make_files(layout=LAYOUT)
    assert [files.has_state(page.key) for page in PAGES[:2]] == [False, True]
    assert [files.read(*page.named) for page in PAGES[:2]] == [None, None]
    assert files.stats.damaged == 2


@pytest.mark.parametrize(
    "parts",
    [
        PageParts(ROWS, STATE[:1]),
        PageParts(ROWS, [*STATE, STATE[1]]),
        PageParts(ROWS, [STATE[0].bfloat16(), STATE[1]]),
        PageParts(ROWS * 2, STATE),
        PageParts([], STATE),
    ],
    ids=["one state part", "three", "bf16", "more rows", "no rows"],
)
def test_parts_that_do_not_fit_cost_one_page(make_files, parts):
    files = make_files(layout=LAYOUT)
    assert not put(files, PAGES[0], parts)
    assert PAGES[0].key not in files
    assert put(files, PAGES[0], WHOLE)


def test_limit_below_a_page_with_its_state_is_refused(make_files):
    layout = BlobLayout("moon-1", ValueFormat.BF16, (Part(0, 1 << 12, PartKind.STATE_FP32), Part(1, 6)))
    with pytest.raises(UsageError, match=r"holds no page of this model; one takes 20\.00 KiB"):
        make_files(4096, layout=layout)
