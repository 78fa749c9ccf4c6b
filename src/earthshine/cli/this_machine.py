"""The machine that a forecast is for where none is named: this one, as it was measured, or else as it is estimated."""

from pathlib import Path

from earthshine.machine import Machine, OtherMachine, estimated_machine, own_machine
from earthshine.settings import read_settings


def this_machine(folder: Path) -> tuple[Machine, str]:
    """This machine, and why its rates are estimates, or "". `folder`: where the model lies, or will.

    Raises UsageError for a profile that is none.
    """
    try:
        own = own_machine(read_settings().profile)
        reason = "This machine has not been measured."
    except OtherMachine as other:
        own, reason = None, str(other).partition(". ")[0] + "."
    return (own, "") if own is not None else (estimated_machine(folder), reason)
