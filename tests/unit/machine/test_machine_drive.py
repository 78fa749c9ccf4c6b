"""The disk below a folder: on this system, and on described others."""

import os
from pathlib import Path

import pytest

from earthshine.machine import drive


def here(folder: Path) -> str:
    number = os.stat(folder).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def block(system, name: str, number: str, **files: str) -> Path:
    """A disk in /sys, as the kernel links it."""
    folder = system.root / "sys/devices" / name
    folder.mkdir(parents=True, exist_ok=True)
    link = system.root / "sys/dev/block" / number
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)
    for file, text in files.items():
        system.write(f"sys/devices/{name}/{file.replace('__', '/')}", text)
    return folder


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    absent = tmp_path / "a" / "b"
    assert drive.nearest_folder(absent) == tmp_path.resolve()
    system = os.statvfs(tmp_path)
    assert drive.free_bytes(absent) == pytest.approx(system.f_bavail * system.f_frsize, rel=0.2)


@pytest.mark.parametrize(
    ("name", "rotational", "kind"),
    [
        ("nvme0n1", "0", "NVMe drive"),
        ("sda", "0", "SATA SSD"),
        ("sda", "1", "hard disk"),
        ("vda", "1", "virtual disk"),
        ("mmcblk0", "", "unknown"),
    ],
)
def test_the_kind_of_a_disk_is_what_the_system_says(system, tmp_path, name, rotational, kind) -> None:
    """Of a partition, it is its disk's."""
    block(system, f"{name}/{name}p1", here(tmp_path), partition="1")
    system.write(f"sys/devices/{name}/queue/rotational", rotational)
    assert drive.disk_kind(tmp_path, system.root) == kind


def test_the_disks_of_an_array_and_their_links_add_up(system, tmp_path) -> None:
    array = block(system, "md0", here(tmp_path))
    (array / "slaves").mkdir()
    for name, speed, width in (("nvme0n1", "16.0 GT/s PCIe", "4"), ("nvme1n1", "8.0 GT/s PCIe", "2")):
        system.write(f"sys/devices/{name}/device/device/current_link_speed", speed)
        system.write(f"sys/devices/{name}/device/device/current_link_width", width)
        (array / "slaves" / name).symlink_to(system.root / "sys/devices" / name)
    assert drive.disk_kind(tmp_path, system.root) == "NVMe drive"
    assert drive.link_rate(tmp_path, system.root) == pytest.approx(4 * 1.969e9 + 2 * 0.985e9)


def test_a_file_system_with_a_number_of_its_own_is_followed_to_its_disk(system, tmp_path) -> None:
    """As for btrfs, whose device number no disk has."""
    system.groups(mounts=f"35 31 {here(tmp_path)} / / rw - btrfs /dev/absent7 rw\n")
    system.write("sys/class/block/absent7/dev", "8:7")
    block(system, "sdz/absent7", "8:7", partition="1")
    system.write("sys/devices/sdz/queue/rotational", "0")
    assert drive.disk_kind(tmp_path, system.root) == "SATA SSD"


@pytest.mark.parametrize(("kind", "found"), [("nfs4", "network"), ("tmpfs", "unknown"), ("", "unknown")])
def test_file_system_without_a_disk_has_no_link_rate(system, tmp_path, kind, found) -> None:
    system.groups(mounts=f"35 31 {here(tmp_path)} / / rw - {kind} server:/x rw\n" if kind else "")
    assert drive.disk_kind(tmp_path, system.root) == found
    assert drive.link_rate(tmp_path, system.root) is None


def test_this_machines_disk_has_a_kind(tmp_path: Path) -> None:
    kinds = ("NVMe drive", "SATA SSD", "hard disk", "virtual disk", "network", "unknown")
    assert drive.disk_kind(tmp_path) in kinds
