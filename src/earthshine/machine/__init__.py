"""What the computer is: facts probed from the system's own files, and rates measured or described. No torch.

Measuring lies in `machine.disk` and `machine.network`, which are imported where a profile is made; memory and products
are measured by `kernels.measure`. A number that this package returns comes from the system, from a clock,
or from a file that says where it is from.
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
