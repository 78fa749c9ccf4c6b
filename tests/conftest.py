"""Fixtures that every folder of tests shares: where the optional reference data lies."""

from pathlib import Path

import pytest

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published configs, tokenizer files and traces; tests that need it skip where it is absent."""
    if not _DATA.is_dir():
        pytest.skip(f"the reference data folder {_DATA} is absent")
    return _DATA
