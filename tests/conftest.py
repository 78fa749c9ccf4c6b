"""Fixtures that every folder of tests shares: where the optional reference data lies, and one thread for torch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published configs, tokenizer files and traces; tests that need it skip where it is absent."""
    if not _DATA.is_dir():
        pytest.skip(f"the reference data folder {_DATA} is absent")
    return _DATA


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests work on tensors too small to share, and threads that wait for each other cost minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
