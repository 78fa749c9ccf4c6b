"""The native library under AddressSanitizer and UBSan: native/tests/fuzz.cc calls all of earthshine.h.

Valid calls on exactly sized buffers touch nothing beyond them and give the same bits on 1 and 3 threads and on every
instruction set (AMX's tiles are computed in C++); broken arguments are refused. The seed is printed and can be given
again; a build and a run take about half a minute.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED, ROUNDS = 20250, 30
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"


def tool(*names: str) -> str:
    """A program beside this Python, or on the path; the test is skipped without it."""
    for name in names:
        beside = Path(sys.executable).with_name(name)
        found = str(beside) if beside.is_file() else shutil.which(name)
        if found:
            return found
    pytest.skip(f"{names[0]} is not installed")


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or not (ROOT / "native").is_dir():
        pytest.skip("the sanitized build needs the sources, and is set up for Linux")
    folder = tmp_path_factory.mktemp("sanitized")
    cmake, compiler = tool("cmake"), os.environ.get("CXX") or tool("c++", "g++", "clang++")
    (folder / "probe.cc").write_text("int main() { return 0; }\n")
    probe = run(compiler, *FLAGS.split(), "probe.cc", "-o", "probe", folder=folder)
    if probe.returncode or run("./probe", folder=folder).returncode:
        pytest.skip(f"{compiler} has no AddressSanitizer or UBSan here")
    options = (f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS_DEBUG={FLAGS}")
    extras = ("-DEARTHSHINE_FUZZ=ON", "-DEARTHSHINE_EMULATE_AMX=ON")
    generator = ("-G", "Unix Makefiles" if shutil.which("make") else "Ninja")
    configured = run(cmake, *generator, str(ROOT), *options, *extras, folder=folder)
    assert configured.returncode == 0, configured.stdout
    built = run(cmake, "--build", ".", "--parallel", "2", folder=folder)
    assert built.returncode == 0, built.stdout
    return folder / "earthshine_fuzz"


def test_no_call_reaches_beyond_its_buffers_and_broken_calls_are_refused(fuzzer: Path) -> None:
    seed = os.environ.get("EARTHSHINE_FUZZ_SEED", str(SEED))
    found = run(str(fuzzer), seed, str(ROUNDS), folder=fuzzer.parent)
    print(found.stdout)
    assert found.returncode == 0, found.stdout
    assert "portable: " in found.stdout
    assert "broken: " in found.stdout


def test_a_read_beyond_a_buffer_is_caught(fuzzer: Path) -> None:
    """The sanitizer watches this build: without that, the test above proves nothing."""
    found = run(str(fuzzer), "over-read", "0", folder=fuzzer.parent)
    assert found.returncode != 0
    assert "heap-buffer-overflow" in found.stdout
