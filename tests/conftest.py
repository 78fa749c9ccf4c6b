"""Fixtures that every folder of tests shares: optional reference data, one thread for torch, AMX in emulation."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from earthshine.engine import load as engine_load
from earthshine.kernels import library
from earthshine.text import grammar_compile

from .forked import Forker

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("earthshine", deadline=None)
hypothesis.settings.load_profile("earthshine")

_ROOT = Path(__file__).resolve().parents[1]
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published configs, tokenizer files and traces; tests that need it skip where it is absent."""
    if not _DATA.is_dir():
        pytest.skip(f"the reference data folder {_DATA} is absent")
    return _DATA


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests work on tensors too small to share, and threads that wait for each other cost minutes on a busy machine.

    A model gets one thread as well where a test does not ask for more, as on a machine with one processor.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_load, "processors", lambda: 1)
        yield
    torch.set_num_threads(before)


def _tool(*names: str) -> str:
    """A program beside this Python, or on the path; the test is skipped without it."""
    for name in names:
        beside = Path(sys.executable).with_name(name)
        if found := str(beside) if beside.is_file() else shutil.which(name):
            return found
    pytest.skip(f"{names[0]} is not installed")


@pytest.fixture(scope="session", autouse=True)
def _grammars_have_time() -> Iterator[None]:
    """A grammar compiles in milliseconds, and on a busy machine in more than the two seconds that it gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_compile, "_SECONDS", 300.0)
        yield


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts Python processes that need not import Earthshine and torch again."""
    made = Forker()
    yield made
    made.close()


@pytest.fixture(scope="session")
def build_native() -> Callable[..., Path]:
    """`build_native(name, *flags, options=())`: the folder of a build of `native/` that is unoptimised except `flags`.

    It stays in build/tests until anything that it is made from changes; of each name, the three last are kept.
    """
    sources = [_ROOT / "CMakeLists.txt", *sorted(path for path in (_ROOT / "native").rglob("*") if path.is_file())]

    def build(name: str, *flags: str, options: tuple[str, ...] = ()) -> Path:
        if not (_ROOT / "native").is_dir():
            pytest.skip("a build needs the sources")
        cmake, compiler = _tool("cmake"), os.environ.get("CXX") or _tool("c++", "g++", "clang++")
        options = (f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS_DEBUG={' '.join(flags)}", *options)
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        made_from = hashlib.sha256(repr((version, os.environ.get("CXXFLAGS"), options)).encode())
        for path in sources:
            made_from.update(f"{path.relative_to(_ROOT)} {path.stat().st_size} ".encode() + path.read_bytes())
        builds = _ROOT / "build" / "tests"
        builds.mkdir(parents=True, exist_ok=True)
        folder = builds / f"{name}-{made_from.hexdigest()[:16]}"
        with (builds / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may build the same
            if not (folder / "complete").exists():
                shutil.rmtree(folder, ignore_errors=True)
                generator = ("-G", "Unix Makefiles" if shutil.which("make") else "Ninja")
                configure = ("-S", str(_ROOT), "-B", str(folder), *generator, "-DCMAKE_BUILD_TYPE=Debug", *options)
                for command in (configure, ("--build", str(folder), "--parallel", "2")):
                    done = subprocess.run([cmake, *command], capture_output=True, text=True, check=False)
                    assert done.returncode == 0, done.stdout + done.stderr
                (folder / "complete").touch()
                for old in sorted(builds.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)[:-3]:
                    shutil.rmtree(old)
        return folder

    return build


@pytest.fixture(scope="session")
def emulated_library(build_native: Callable[..., Path]) -> ctypes.CDLL:
    """The native library with AMX's tile instructions computed in C++."""
    if library.available() and library.refusal("avx512_bf16"):
        pytest.skip(f"emulated AMX packs with AVX512_BF16. {library.refusal('avx512_bf16')}")
    folder = build_native("emulated", "-O1", options=("-DEARTHSHINE_EMULATE_AMX=ON",))
    opened = library.open_library(folder / library.FILE_NAME)
    assert isinstance(opened, ctypes.CDLL), opened
    return opened


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost and its key, as PEM files."""
    if shutil.which("openssl") is None:
        pytest.skip("a certificate is made with openssl")
    folder = tmp_path_factory.mktemp("tls")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", *kind, *name, *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"
