"""Facts of the computer, probed from the system's files, and its rates: measured, described or estimated. No torch.

Disk and network are measured by `machine.disk` and `machine.network`, memory and products by `kernels.measure`. Every
number comes from the system, from a clock, from a file that names its source, or from `machine.estimate`, which marks
it as an estimate.
"""

from earthshine.machine.estimate import estimated_machine
from earthshine.machine.probe import memory_available, memory_peak, memory_resident, memory_total, processors, title
from earthshine.machine.profile import (
    DiskRate,
    Machine,
    Network,
    OtherMachine,
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
    "OtherMachine",
    "check_machine",
    "described",
    "estimated_machine",
    "machine_json",
    "memory_available",
    "memory_peak",
    "memory_resident",
    "memory_total",
    "own_machine",
    "processors",
    "read_machine",
    "save_machine",
    "title",
]
