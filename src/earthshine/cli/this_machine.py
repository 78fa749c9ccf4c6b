"""The machine that a forecast is for: a file, one that ships, or this one, as it was measured or else is estimated."""

import os
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.machine import Machine, OtherMachine, described, estimated_machine, own_machine, read_machine
from earthshine.settings import read_settings
from earthshine.untrusted import shown

THIS = "this"


def this_machine(folder: Path) -> tuple[Machine, str]:
    """This machine, and why its rates are estimates, or "". `folder`: where the model lies, or will.

    Raises UsageError for a damaged profile.
    """
    try:
        own = own_machine(read_settings().profile)
        reason = "This machine has not been measured."
    except OtherMachine as other:
        own, reason = None, str(other).partition(". ")[0] + "."
    return (own, "") if own is not None else (estimated_machine(folder), reason)


def machine_named(name: str, folder: Path) -> tuple[Machine, str]:
    """The machine of a file, a shipped one or `THIS`, and why its rates are estimates, or "". `folder`: of the model.

    Raises UsageError for another name.
    """
    shipped = described()
    if name in shipped:
        return read_machine(shipped[name]), ""
    if name != THIS:
        if not os.path.exists(name):
            raise UsageError(
                f"{shown(name)} is neither a file nor a known machine; known are {', '.join((THIS, *shipped))}. A file "
                f"that describes a machine is taken too: copy one of {shown(next(iter(shipped.values())).parent)} and "
                "change its figures."
            )
        return read_machine(Path(name)), ""
    return this_machine(folder if folder.is_dir() else read_settings().downloads)
