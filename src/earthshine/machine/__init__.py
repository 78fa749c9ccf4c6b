"""Facts of the computer, probed from the system's files, and its rates, measured or described. No torch.

Disk and network are measured by `machine.disk` and `machine.network`, memory and products by `kernels.measure`. Every
number comes from the system, from a clock, or from a file that names its source.
"""

from earthshine.machine.probe import memory_available, memory_peak, memory_resident, memory_total, processors
from earthshine.machine.profile import (
    DiskRate,
    Machine,
    Network,
    check_machine,
    described,
    machine_json,
    own_machine,
    read_machine,
    save_machine,
)

__all__ = [
    "DiskRate",
    "Machine",
    "Network",
    "check_machine",
    "described",
    "machine_json",
    "memory_available",
    "memory_peak",
    "memory_resident",
    "memory_total",
    "own_machine",
    "processors",
    "read_machine",
    "save_machine",
]
