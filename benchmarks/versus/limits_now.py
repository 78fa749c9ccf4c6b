"""The machine's limits as they are now, as a worker of Earthshine's own Python: matrix peak, memory and disk rates.

The disk is read with O_DIRECT at random places of the model's files, in blocks of an expert's size, and not at all
where no model is named.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from limits import Disk, matrix_peak, read_rate

_SAMPLE_BYTES = 1 << 30
_BLOCK = 4 << 20


def measured(request: dict) -> dict:
    """FLOP/s and its unit, bytes per second of memory, and of the disk where `model` is a folder of safetensors."""
    threads = request["threads"]
    rate, unit = matrix_peak(threads)
    memory = torch.ones(_SAMPLE_BYTES, dtype=torch.uint8)
    found = {"matrix_flops": rate, "matrix_unit": unit, "memory_bytes_per_second": read_rate(threads, memory)}
    files = sorted(Path(request["model"]).glob("*.safetensors")) if request.get("model") else []
    places = [(file, at) for file in files for at in range(0, file.stat().st_size - _BLOCK, _BLOCK)]
    if len(places) >= 16:
        some = random.Random().sample(places, min(len(places), 512))
        found["disk_bytes_per_second"] = Disk(some, _BLOCK).rate(8, 8, 0.02)
    return found


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
