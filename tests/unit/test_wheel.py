"""What a wheel carries: all files of the package, its licence, and the native library."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names in a wheel of this source, built without the native library, which would take a minute."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-C", "wheel.cmake=false"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


def test_a_wheel_carries_every_file_of_the_package(wheel_names):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git's list of the files")
    command = ["git", "ls-files", "--", "earthshine"]
    files = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) > 100
    assert {name for name in files if (ROOT / "src" / name).is_file()} <= wheel_names
    assert not [name for name in wheel_names if "__pycache__" in name or name.startswith(("tests", "tools", "docs"))]


@pytest.mark.parametrize(
    "name",
    [
        "earthshine/gleam/model.safetensors",
        "earthshine/machine/described/mini-24gb.json",
        "earthshine/plan/prices.json",
        "earthshine/server/page/index.html",
        "earthshine/py.typed",
        f"earthshine-{VERSION}.dist-info/licenses/LICENSE",
        f"earthshine-{VERSION}.dist-info/entry_points.txt",
    ],
)
def test_a_wheel_carries_what_commands_need(wheel_names, name):
    assert name in wheel_names


def test_the_build_installs_the_native_library():
    files = importlib.metadata.files("earthshine") or []
    assert "earthshine/kernels/libearthshine.so" in {path.as_posix() for path in files}
