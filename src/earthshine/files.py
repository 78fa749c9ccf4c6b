"""Files that are written whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@contextmanager
def written_whole(path: Path, mode: int | None = 0o600) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` at the block's end, once it is on the disk.

    Until then, and where the block or the disk fails, what was at `path` stays. Its folder must exist. `mode`: its
    permissions; None: those of the file that it replaces, or what the umask leaves a new one. Raises OSError.
    """
    temporary = path.parent / f".{path.name[:32]}.{os.urandom(8).hex()}"
    handle = os.open(temporary, _NEW, 0o666 if mode is None else mode)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            _set_mode(file.fileno(), path, mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # an interrupt may come after the last step
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _set_mode(descriptor: int, path: Path, mode: int | None) -> None:
    if mode is None:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            return
    os.fchmod(descriptor, mode)


def write_file(path: Path, raw: bytes) -> None:
    """Write a file that a person named, as a whole or not at all; through a link, and to a pipe or a terminal as it is.

    Raises OSError, which names it.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(raw)
            return
        with written_whole(Path(os.path.realpath(path)), None) as file:
            file.write(raw)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
