"""The folder of benchmarks is no package that is installed; its modules are imported from where they lie."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
