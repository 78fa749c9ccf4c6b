"""Fixtures that every folder of tests shares: optional reference data, one thread for torch, AMX in emulation."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from earthshine.kernels import library

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
    """Tests work on tensors too small to share, and threads that wait for each other cost minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The native library with AMX's tile instructions computed in C++, built from the sources in 5 seconds."""
    if library.available() and library.refusal("avx512_bf16"):
        pytest.skip(f"emulated AMX packs with AVX512_BF16. {library.refusal('avx512_bf16')}")
    beside = Path(sys.executable).with_name("cmake")
    cmake = str(beside) if beside.is_file() else shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("emulated AMX needs cmake and a C++ compiler")
    folder = tmp_path_factory.mktemp("emulated")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DEARTHSHINE_EMULATE_AMX=ON"]
    where = f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}"
    for command in (["-S", str(_ROOT), "-B", str(folder), where, *options], ["--build", str(folder)]):
        done = subprocess.run([cmake, *command], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
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
