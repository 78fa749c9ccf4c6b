"""The native library under AddressSanitizer and UBSan: native/tests/fuzz.cc calls all of earthshine.h.

Valid calls on exactly sized buffers touch nothing beyond them and give the same bits on 1 and 3 threads and on every
instruction set (AMX's tiles are computed in C++); broken arguments are refused. The seed is printed and can be given
again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SEED, ROUNDS = 20250, 30
FLAGS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def fuzzer(build_native: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    if sys.platform != "linux" or not compiler:
        pytest.skip("the sanitized build needs a C++ compiler, and is set up for Linux")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cc").write_text("int main() { return 0; }\n")
    probe = run(compiler, *FLAGS, "probe.cc", "-o", "probe", folder=folder)
    if probe.returncode or run("./probe", folder=folder).returncode:
        pytest.skip(f"{compiler} has no AddressSanitizer or UBSan here")
    options = ("-DEARTHSHINE_FUZZ=ON", "-DEARTHSHINE_EMULATE_AMX=ON")
    return build_native("sanitized", *FLAGS, options=options) / "earthshine_fuzz"


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
