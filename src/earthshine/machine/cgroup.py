"""Limits that a container or a service sets on this process, by control groups of version 1 or 2.

The limits of the process's own group and of all visible groups above it apply. Inside a container the group that the
system names may not exist under the mount; then the mount's root is the process's group. A file that can't be read sets
no limit. `root` is where the system's files are, so that tests can use others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 1 << 62  # version 1 writes the largest multiple of a page below 2^63 for none


@dataclass(frozen=True, slots=True)
class _Group:
    folder: Path
    version: int
    own: bool  # the process's, not one above it


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that all processes of the group may take together; None without a limit."""
    return min((limit for group in _groups("memory", root) if (limit := _memory_most(group)) is not None), default=None)


def memory_room(root: Path = ROOT) -> int | None:
    """Bytes that remain under the lowest limit, with reclaimable page cache counted as free."""
    rooms = []
    for group in _groups("memory", root):
        limit, used = _memory_most(group), _integer(group.folder / _USAGE[group.version])
        if limit is not None and used is not None:
            given_back = _counts(group).get("total_inactive_file" if group.version == 1 else "inactive_file", 0)
            rooms.append(max(0, limit - used + given_back))
    return min(rooms, default=None)


def processors_quota(root: Path = ROOT) -> int | None:
    """The number of processors that the quota of processor time amounts to, rounded up; None without a limit."""
    quotas = []
    for group in _groups("cpu", root):
        quota, period = _cpu_time(group)
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(max(1, -(-quota // period)))
    return min(quotas, default=None)


_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}


def _memory_most(group: _Group) -> int | None:
    if group.version == 2:
        return _limit(_integer(group.folder / "memory.max"))
    if not group.own and _integer(group.folder / "memory.use_hierarchy") == 0:  # its limit is not for groups below
        return None
    # The hierarchical limit is that of groups above too, of those as well that can't be seen from here.
    limits = (_integer(group.folder / "memory.limit_in_bytes"), _counts(group).get("hierarchical_memory_limit"))
    return min((most for limit in limits if (most := _limit(limit)) is not None), default=None)


def _cpu_time(group: _Group) -> tuple[int | None, int | None]:
    """Microseconds of processor time per period, and the period."""
    if group.version == 1:
        return _integer(group.folder / "cpu.cfs_quota_us"), _integer(group.folder / "cpu.cfs_period_us")
    words = (*_text(group.folder / "cpu.max").split(), "", "")
    return _number(words[0]), _number(words[1])


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """This process's groups that may limit it, each with those above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if path.startswith("/") and (version == 2 or controller in names.split(",")):
            mount, above = _mount(controller, version, root)
            yield from _up(mount, _below(path, above), version)


def _up(mount: Path, inside: str, version: int) -> Iterator[_Group]:
    folder = mount / inside
    own = folder if ".." not in Path(inside).parts and folder.is_dir() else mount
    for group in (own, *own.parents):
        if group.is_relative_to(mount):
            yield _Group(group, version, own=group == own)


def _below(path: str, above: str) -> str:
    """A group's path under a mount that shows the groups from `above` on."""
    return str(Path(path).relative_to(above)) if Path(path).is_relative_to(above) else ""


def _mount(controller: str, version: int, root: Path) -> tuple[Path, str]:
    """Where a hierarchy is mounted, and which of its groups is there; the usual place if that is unknown.

    A line of mountinfo: "35 31 0:32 /root /mount/point options [tags] - cgroup source rw,memory".
    """
    for line in _text(root / "proc/self/mountinfo").splitlines():
        places, _, kind = line.partition(" - ")
        place, form = places.split(" "), kind.split(" ")
        if len(place) < 6 or len(form) < 3:
            continue
        right = form[0] == "cgroup2" if version == 2 else form[0] == "cgroup" and controller in form[2].split(",")
        if right:
            return root / _plain(place[4]).lstrip("/"), _plain(place[3])
    usual = root / "sys/fs/cgroup"
    return (usual if version == 2 else usual / controller), "/"


def _plain(text: str) -> str:
    """A path as the system writes it there: a space is \\040."""
    for code in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(code):03o}", code)
    return text


def _limit(value: int | None) -> int | None:
    return value if value is not None and 0 < value < _NO_LIMIT else None


def _counts(group: _Group) -> dict[str, int]:
    pairs = (line.split() for line in _text(group.folder / "memory.stat").splitlines())
    found = {pair[0]: _number(pair[1]) for pair in pairs if len(pair) == 2}
    return {name: value for name, value in found.items() if value is not None}


def _integer(file: Path) -> int | None:
    return _number(_text(file).strip())


def _number(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 20 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
