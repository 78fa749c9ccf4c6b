"""Says in one sentence what this machine lacks for `make`, before anything is installed. Prints nothing otherwise.

    python3 tools/preflight.py

It checks the Python that runs it, which may be an old one, then the C++ compiler and the disk of the current folder.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile

PYTHON = (3, 11)
# An installation with torch's build for processors takes 0.99 GB; the files of torch and the build, 0.3 GB meanwhile.
DISK_BYTES = 1_400_000_000
# What CMakeLists.txt needs: C++20 with its library, a shared library with threads, and on x86-64 the largest set.
_SOURCE = "#include <bit>\n#include <span>\n#include <thread>\nint main() { return std::popcount(0u); }\n"
_FLAGS = ["-std=c++20", "-shared", "-fPIC", "-pthread"]
_X86_FLAGS = ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]


def main():
    """Exits with 1 and the first thing that is missing."""
    missing = python_lacks(sys.version_info) or venv_lacks() or compiler_lacks(os.environ) or disk_lacks(os.getcwd())
    if missing:
        sys.exit(missing)


def python_lacks(version):
    """What is wrong with a Python of this version (a tuple); empty for nothing. The others return the same."""
    if tuple(version) >= PYTHON:
        return ""
    have, need = (".".join(map(str, numbers)) for numbers in (tuple(version)[:3], PYTHON))
    return f"Earthshine needs Python {need} or later, and {sys.executable} is {have}; name one: make PYTHON=python3.12"


def venv_lacks():
    """Debian and Ubuntu ship `ensurepip` in a package of its own."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python3.{sys.version_info[1]}-venv"
        return f"{sys.executable} can't make virtual environments; install {package} (Debian and Ubuntu's name)."
    return ""


def compiler_lacks(environment):
    """The compiler is the one that CMake takes: CXX in the environment, or else the first of these on the path."""
    named = shlex.split(environment.get("CXX", ""))
    found = [path for path in map(shutil.which, named[:1] or ["c++", "g++", "clang++"]) if path]
    if not found:
        what = f"CXX={named[0]}" if named else "a C++ compiler"
        return f"Earthshine builds a small native library, and {what} was not found; install g++ or clang."
    flags = _FLAGS + (_X86_FLAGS if platform.machine() == "x86_64" else [])
    with tempfile.TemporaryDirectory() as folder:
        command = [found[0], *named[1:], *flags, "-x", "c++", "-", "-o", os.path.join(folder, "library")]
        done = subprocess.run(command, input=_SOURCE, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    reasons = [line.strip() for line in done.stderr.splitlines() if "error" in line] or ["it failed without a reason"]
    return (
        f"{found[0]} can't build Earthshine's native library ({reasons[0]}); install g++ 11 or clang 12, or later "
        "ones, and name it: make CXX=g++-12"
    )


def disk_lacks(folder):
    """`folder`: the one that .venv is made in."""
    free = shutil.disk_usage(folder).free
    if free >= DISK_BYTES:
        return ""
    sizes = f"about {DISK_BYTES / 1e9:.1f} GB, most of it for torch, and {free / 1e9:.1f} GB are free"
    return f"An installation in {folder} needs {sizes} on its disk; free some space first."


if __name__ == "__main__":
    main()
