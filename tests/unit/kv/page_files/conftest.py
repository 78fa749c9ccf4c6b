"""The disk cache of pages: what is read is what was written for just these tokens, whatever happens on the disk."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from earthshine.kv import BlobLayout, PageFiles, PageKey, PageParts, Part, ValueFormat

PARTS = tuple(Part(layer, 6) for layer in range(3))
LAYOUT = BlobLayout("moon-1", ValueFormat.BF16, PARTS)
PAGE_TOKENS = 8
BLOCK = 4096  # what a page of these tests occupies


@dataclass(frozen=True)
class Page:
    key: PageKey
    tokens: tuple[int, ...]
    latents: tuple[torch.Tensor, ...]

    @property
    def named(self):
        return self.key, self.tokens


def make_page(number: int, layout: BlobLayout = LAYOUT) -> Page:
    generator = torch.Generator().manual_seed(number)
    shapes = [(PAGE_TOKENS, part.width) for part in layout.parts]
    latents = tuple(torch.randn(shape, generator=generator).to(layout.format.dtype) for shape in shapes)
    key, prior = (bytes([each, *range(31)]) for each in (number + 1, number + 101))
    return Page(PageKey(key, prior, PAGE_TOKENS * number), tuple(range(number, number + PAGE_TOKENS)), latents)


PAGES = [make_page(number) for number in range(40)]


@pytest.fixture
def make_files(tmp_path):
    made = []

    def make(limit_bytes=1 << 20, folder=tmp_path / "cache", layout=LAYOUT, page_tokens=PAGE_TOKENS, **options):
        made.append(PageFiles(folder, layout, page_tokens, limit_bytes, **options))
        return made[-1]

    yield make
    for files in made:
        files.close()


def put(files: PageFiles, *pages: Page) -> list[bool]:
    """Write pages one after another and wait for each; what `done` got."""
    results: list[bool] = []
    for page in pages:
        files.write(*page.named, lambda page=page: PageParts(page.latents), results.append)
        assert files.flush(10)
    return results


def holds(files: PageFiles, page: Page) -> bool:
    """Whether the page is read; what is read must be right."""
    parts = files.read(*page.named)
    if parts is not None:
        layers = parts.rows
        assert len(layers) == len(page.latents)
        assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(layers, page.latents, strict=True))
    return parts is not None


def path_of(folder: Path, page: Page) -> Path:
    """Where the page lies, below the one subfolder."""
    (home,) = folder.iterdir()
    name = page.key.key
    return home / name[:1].hex() / f"{name.hex()}.kv"


def listed(files: PageFiles) -> list[int]:
    return [number for number, page in enumerate(PAGES) if page.key in files]


KILLED = """
import sys
from pathlib import Path
import torch
from earthshine.kv import BlobLayout, PageFiles, PageKey, PageParts, Part, ValueFormat

files = PageFiles(
    Path(sys.argv[1]), BlobLayout("moon-1", ValueFormat.FP32, tuple(Part(i, 2048) for i in range(4))), 64, 1 << 30
)
tokens = tuple(range(64))
for number in range(10**6):
    name = number.to_bytes(32, "big")
    latents = [torch.full((64, 1), float(number + layer)).expand(64, 2048) for layer in range(4)]
    files.write(PageKey(name, name, 0), tokens, lambda: PageParts(latents), lambda good: None)
    files.flush(10)
    print(number, flush=True)
"""
