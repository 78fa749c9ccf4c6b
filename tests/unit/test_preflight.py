"""tools/preflight.py: what a machine lacks is one sentence, before `make` has made anything."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "preflight.py"


@pytest.fixture
def preflight():
    spec = importlib.util.spec_from_file_location("preflight", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiler(folder, message):
    """A compiler that knows an option less than it should."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def test_nothing_is_missing_on_a_machine_that_can_build(preflight, monkeypatch):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(preflight, "DISK_BYTES", 0)
    preflight.main()


@pytest.mark.parametrize(("version", "named"), [((3, 10, 12, "final", 0), "3.10.12"), ((3, 6, 9), "3.6.9")])
def test_an_older_python_is_named_with_its_version(preflight, version, named):
    assert f"needs Python 3.11 or later, and {sys.executable} is {named}" in preflight.python_lacks(version)


def test_a_python_without_ensurepip_names_the_package(preflight, tmp_path):
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    command, environment = [sys.executable, str(SCRIPT)], os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"install python3.{sys.version_info.minor}-venv" in done.stderr


def test_no_compiler_on_the_path(preflight, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.compiler_lacks({}).endswith("and a C++ compiler was not found; install g++ or clang.")


def test_a_compiler_that_is_too_old_is_named_with_its_own_reason(preflight, tmp_path, monkeypatch):
    old = _compiler(tmp_path, "c++: error: unrecognized command-line option -mamx-tile")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for environment in ({}, {"CXX": f"{old} -g"}):
        sentence = preflight.compiler_lacks(environment)
        assert sentence.startswith(f"{old} can't build")
        assert "unrecognized command-line option -mamx-tile" in sentence
        assert "make CXX=g++-12" in sentence


def test_a_full_disk_says_what_is_needed_and_what_is_free(preflight, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(preflight.DISK_BYTES - 1))
    assert f"{tmp_path} needs about 1.4 GB" in preflight.disk_lacks(str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(preflight.DISK_BYTES))
    assert preflight.disk_lacks(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("PYTHON=python3.absent", "needs Python 3.11 or later, and python3.absent was not found"),
        ("CXX=/absent/g++", "and CXX=/absent/g++ was not found; install g++ or clang."),
    ],
)
def test_make_names_what_is_missing_and_makes_nothing(tmp_path, setting, sentence):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    command = ["make", "--no-print-directory", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", setting, "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []
