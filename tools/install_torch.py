"""Installs torch without CUDA into the environment of the Python that runs this, and says the size first.

    .venv/bin/python tools/install_torch.py torch==2.13.0

Package indexes serve torch for Linux with CUDA, which Earthshine does not use. So, in this order:

1. a file on this machine that pip is configured to find, if it needs no CUDA;
2. the build for processors, by `uv pip install --torch-backend=cpu`; a uv that is missing is installed beside pip;
3. where that can't be reached, what pip's index has, if uv's resolution of it names no CUDA package.

Otherwise it stops and says what remains. `make TORCH=...` passes all of this by.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

# Of torch 2.13.0 for Python 3.11 on x86-64: the file; and with CUDA, with the 27 packages that it brings.
_CPU_MB, _CUDA_MB = 192, 2741
_CUDA = re.compile(r"(nvidia|cuda|triton)\b", re.IGNORECASE)
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main(requirement: str) -> None:
    """Install it, or end with a message."""
    found = local_file(requirement)
    if found is not None:
        print(f"Installing {found.name}, which is on this machine ({found.stat().st_size / 1e6:.0f} MB).", flush=True)
        _run([*_PIP, "install", "--quiet", str(found)])
        return
    uv, index = find_uv(), index_options(_output([*_PIP, "config", "list"]))
    into = [uv, "pip", "install", "--python", sys.executable, *index]
    print(f"Downloading {requirement} for processors, about {_CPU_MB} MB (with CUDA: {_CUDA_MB} MB).", flush=True)
    if subprocess.run([*into, "--torch-backend=cpu", requirement]).returncode == 0:
        return
    trial = subprocess.run([*into, "--dry-run", requirement], capture_output=True, text=True)
    if trial.returncode == 0 and not cuda_packages(trial.stderr):
        print(f"PyTorch's own index can't be reached; the configured one has {requirement} without CUDA.", flush=True)
        _run([*_PIP, "install", "--quiet", requirement])
        return
    sys.exit(
        f"The build of {requirement} for processors can't be reached, and the configured index "
        + (f"has it with CUDA only, about {_CUDA_MB} MB." if trial.returncode == 0 else "does not answer either.")
        + f" To take what pip finds: make TORCH={requirement}. To take a file: make TORCH=path/to/torch.whl."
    )


def local_file(requirement: str) -> Path | None:
    """The file that pip would install without an index, as its configuration says; None for none, or one with CUDA."""
    trial = [*_PIP, "install", "--quiet", "--dry-run", "--no-deps", "--no-index", "--report", "-", requirement]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        return None
    (item,) = json.loads(done.stdout)["install"] or [None]
    if item is None or any(_CUDA.match(needed) for needed in item["metadata"].get("requires_dist", [])):
        return None
    path = Path(unquote(urlparse(item["download_info"]["url"]).path))
    return path if path.exists() else None


def find_uv() -> str:
    """The program uv: the one of this machine, or else installed into this environment (18 MB)."""
    own = Path(sys.executable).with_name("uv")
    if found := shutil.which("uv"):
        return found
    if not own.exists():
        _run([*_PIP, "install", "--quiet", "uv"])
    return str(own)


def index_options(configuration: str) -> list[str]:
    """What tells uv of the index that pip is configured with; `configuration` is what `pip config list` prints."""
    found = re.findall(r"^\S*\.index-url='(.*)'$", configuration, re.MULTILINE)
    return ["--default-index", found[-1]] if found else []


def cuda_packages(resolution: str) -> list[str]:
    """The CUDA packages that `uv pip install --dry-run` says it would install."""
    return [name for name in re.findall(r"^ \+ (\S+)==", resolution, re.MULTILINE) if _CUDA.match(name)]


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _run(command: list[str]) -> None:
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: install_torch.py torch==VERSION")
    main(sys.argv[1])
