"""Runs tests on one instruction set at a time, with emulated AMX, and on every processor that this one can imitate."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from earthshine.kernels import library
from earthshine.settings import read_settings

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
EMULATED = "emulated amx"


@pytest.fixture
def native_library() -> Iterator[None]:
    """Skips where the sources run uninstalled; an installed package without its library is a failure."""
    if not library.available():
        try:
            distribution("earthshine")
        except PackageNotFoundError:
            pytest.skip(library.reason())
        pytest.fail(library.reason())
    before = library.threads()
    library.set_threads(1)
    yield
    library.set_threads(before)
    library.force("auto")


@pytest.fixture(params=INSTRUCTION_SETS)
def processor(request: pytest.FixtureRequest, native_library: None) -> Iterator[str]:
    """Hides what is better from dispatch, as on a processor whose best instruction set this is."""
    name = str(request.param)
    if name not in library.instruction_sets():
        pytest.skip(f"{name} can't run here: {library.refusal(name)}")
    library.narrow(name)
    yield name
    library.narrow(read_settings().cpu)


@pytest.fixture(params=[*INSTRUCTION_SETS, EMULATED])
def instruction_set(
    request: pytest.FixtureRequest, native_library: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Serves while the test runs; "portable" can be forced beside it."""
    name = str(request.param)
    if name == EMULATED:
        name = "amx"
        emulated = request.getfixturevalue("emulated_library")
        monkeypatch.setattr(library, "_load", lambda: emulated)
    if name not in library.instruction_sets():
        pytest.skip(f"{name} can't run here: {library.refusal(name)}")
    library.force(name)
    assert library.instruction_set() == name
    yield name
    library.set_threads(1)
