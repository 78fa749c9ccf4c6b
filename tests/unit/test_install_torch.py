"""tools/install_torch.py: which torch is chosen where, with real pip and a uv that stands for what a network does."""

import importlib.util
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_torch.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an empty environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def _wheel(folder, version, *needed):
    """A torch that holds nothing but its name, version and what it needs."""
    info = f"torch-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {name}\n" for name in needed)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _uv(folder, answers):
    """A program uv that writes down its arguments and answers each call in order: (exit code, standard error)."""
    folder.mkdir()
    log = folder / "log"
    lines = [f"#!{sys.executable}", "import json, sys", f"log = open({str(log)!r}, 'a+')"]
    lines += ["log.seek(0); calls = log.read().splitlines()", "print(json.dumps(sys.argv[1:]), file=log, flush=True)"]
    lines += [f"code, text = {answers!r}[len(calls)]", "print(text, file=sys.stderr)", "sys.exit(code)"]
    (folder / "uv").write_text("\n".join(lines))
    (folder / "uv").chmod(0o755)
    return log


@pytest.fixture
def install(python, tmp_path):
    """Run the script: its end, and what uv was asked. `answers`: uv's."""

    def run(*answers):
        files = tmp_path / "files"
        log = _uv(tmp_path / "bin", list(answers))
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(files),
            "PIP_INDEX_URL": (tmp_path / "index").as_uri(),
            "HOME": str(tmp_path),
        }
        command = [str(python), str(SCRIPT), "torch==2.13.0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    (tmp_path / "files").mkdir()
    return run


def test_a_file_without_cuda_on_the_machine_is_taken_without_uv(install, tmp_path, python):
    _wheel(tmp_path / "files", "2.13.0+cpu")
    done, asked = install()
    assert done.returncode == 0, done.stderr
    assert "which is on this machine" in done.stdout
    assert asked == []
    shown = subprocess.run([str(python), "-m", "pip", "show", "torch"], capture_output=True, text=True).stdout
    assert "Version: 2.13.0+cpu" in shown
    subprocess.run([str(python), "-m", "pip", "uninstall", "-qy", "torch"], check=True)


def test_a_file_with_cuda_is_passed_by_for_the_build_for_processors(install, tmp_path):
    _wheel(tmp_path / "files", "2.13.0", "nvidia-cublas==13.1.1.3; platform_system == 'Linux'")
    done, asked = install((0, ""))
    assert done.returncode == 0, done.stderr
    assert "Downloading torch==2.13.0 for processors, about 192 MB" in done.stdout
    assert asked[0][:2] == ["pip", "install"]
    assert asked[0][-2:] == ["--torch-backend=cpu", "torch==2.13.0"]
    assert asked[0][asked[0].index("--default-index") + 1] == (tmp_path / "index").as_uri()


def test_an_index_that_has_torch_with_cuda_alone_is_refused_with_the_remedy(install):
    done, asked = install((2, "no network"), (0, "Would install 2 packages\n + nvidia-cublas==13.1\n + torch==2.13.0"))
    assert done.returncode == 1
    assert "with CUDA only, about 2741 MB" in done.stderr
    assert "make TORCH=torch==2.13.0" in done.stderr
    assert "--dry-run" in asked[1]


def test_an_index_that_does_not_answer_is_named(install):
    done, _ = install((2, "no network"), (2, "no network"))
    assert done.returncode == 1
    assert "does not answer either" in done.stderr


def test_an_index_that_has_torch_without_cuda_is_pips_to_use(install):
    """Pip's own index is empty here, so its own failure follows."""
    done, _ = install((2, "no network"), (0, "Would install 2 packages\n + sympy==1.14.0\n + torch==2.13.0"))
    assert "the configured one has torch==2.13.0 without CUDA" in done.stdout
    assert done.returncode != 0


def test_only_cuda_packages_count():
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (
        " + cuda-bindings==13.5.0\n + nvidia-nccl-cu13==2.29.7\n + sympy==1.14.0\n + triton==3.7.1\n + torch==2.13.0\n"
    )
    assert module.cuda_packages(text) == ["cuda-bindings", "nvidia-nccl-cu13", "triton"]
    assert module.index_options("global.cert='/x'\nglobal.extra-index-url='https://b'\n") == []
    assert module.index_options(":env:.index-url='https://a/simple'\n") == ["--default-index", "https://a/simple"]
