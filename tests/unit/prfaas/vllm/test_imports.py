"""What the connector needs in vLLM's environment, which has few of Earthshine's dependencies."""

import subprocess
import sys
from pathlib import Path

import earthshine.prfaas.vllm

FOLDER = Path(earthshine.prfaas.vllm.__path__[0])

# Imports the modules named, and prints the packages that they bring beside the standard library's, and ours.
LOADED = """
import importlib, sys
import blake3, numpy, torch
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(f"earthshine.prfaas.vllm.{name}")
new = set(sys.modules) - before
print(*{name.partition(".")[0] for name in new} - sys.stdlib_module_names - {"torch", "numpy"})
print(*{".".join(name.split(".")[:2]) for name in new if name.startswith("earthshine.")})
"""


def test_only_torch_numpy_and_blake3_are_imported_beside_vllm():
    modules = [path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "connector")]
    done = subprocess.run([sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, check=True)
    packages, ours = done.stdout.splitlines()
    assert packages == "earthshine"
    assert not {"earthshine.kernels", "earthshine.models", "earthshine.weights", "earthshine.engine"} & set(
        ours.split()
    )


def test_only_the_connector_names_vllm():
    assert [path.stem for path in FOLDER.glob("*.py") if "from vllm" in path.read_text()] == ["connector"]
