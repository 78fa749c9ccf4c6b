"""The disk that a folder is on: its free space, its kind, and how it is attached.

The disk itself is not read. What the system does not report is None or "unknown". `root` is where the system's files
are, so that tests can use others.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from earthshine.machine.cgroup import ROOT

_NETWORK = ("9p", "afs", "ceph", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3", "virtiofs")
_LANE_BYTES = {2.5: 0.25e9, 5.0: 0.5e9, 8.0: 0.985e9, 16.0: 1.969e9, 32.0: 3.938e9, 64.0: 7.563e9}  # by GT/s, PCIe


def nearest_folder(path: Path) -> Path:
    """`path` itself, or the nearest folder above it that exists."""
    real = Path(os.path.realpath(path))
    return next(folder for folder in (real, *real.parents) if folder.is_dir())


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write below `folder`, which need not exist; None if unknown."""
    try:
        system = os.statvfs(nearest_folder(folder))
    except OSError:
        return None
    return system.f_bavail * system.f_frsize


def disk_kind(folder: Path, root: Path = ROOT) -> str:
    """The kind of disk that `folder` is on: "NVMe drive", "SATA SSD", "hard disk", "virtual disk", "network" or
    "unknown"."""
    device, kind = _device(folder, root)
    if device is None:
        return "network" if kind in _NETWORK else "unknown"
    if any(disk.name.startswith("nvme") for disk in _disks(device)):
        return "NVMe drive"
    disks = list(_disks(device))
    if any(disk.name.startswith(("vd", "xvd")) for disk in disks):  # whose word on rotation means nothing
        return "virtual disk"
    turning = {_text(disk / "queue/rotational") for disk in disks}
    return "hard disk" if "1" in turning else "SATA SSD" if "0" in turning else "unknown"


def link_rate(folder: Path, root: Path = ROOT) -> float | None:
    """Bytes per second of the PCIe link of the NVMe drives below `folder`, all together; None for other disks."""
    device, _ = _device(folder, root)
    rates = [_link_rate(disk / "device") for disk in _disks(device)] if device is not None else []
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None


def _link_rate(controller: Path) -> float | None:
    for folder in (controller / "device", controller):
        speed, width = _text(folder / "current_link_speed"), _text(folder / "current_link_width")
        try:
            return _LANE_BYTES[float(speed.split()[0])] * int(width)
        except (KeyError, ValueError, IndexError):
            continue
    return None


def _device(folder: Path, root: Path) -> tuple[Path | None, str]:
    """The block device's folder in /sys, or None, and the kind of file system."""
    number = os.stat(nearest_folder(folder)).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    kind, source = _mounted(name, root)
    if not (root / "sys/dev/block" / name).exists() and source.startswith("/dev/"):  # as for btrfs
        name = _text(root / "sys/class/block" / Path(os.path.realpath(source)).name / "dev")
    found = root / "sys/dev/block" / name
    return (Path(os.path.realpath(found)) if name and found.exists() else None), kind


def _mounted(device: str, root: Path) -> tuple[str, str]:
    """The kind and the source of the file system with that device number.

    A line of mountinfo: "35 31 8:1 / /mount/point options [tags] - ext4 /dev/sda1 rw".
    """
    for line in _text(root / "proc/self/mountinfo").splitlines():
        places, _, rest = line.partition(" - ")
        if places.split(" ")[2:3] == [device]:
            kind, source = (*rest.split(" "), "", "")[:2]
            return kind, source
    return "", ""


def _disks(device: Path) -> Iterator[Path]:
    """The whole disks below a partition, a volume or an array."""
    below = sorted((device / "slaves").glob("*"))
    for part in below:
        yield from _disks(Path(os.path.realpath(part)))
    if not below:
        yield device.parent if (device / "partition").exists() else device


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
