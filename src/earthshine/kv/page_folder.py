"""A folder of small files named by 32-byte keys, which one process uses at a time.

A file is `folder/<first two hex digits>/<hex>.kv`, and appears as a whole: it is written under another name and
renamed. Nothing is synced, so that a file torn by a power cut must be found by its checksum. Every name is opened
relative to the folder's own descriptor, and links in it are not followed. Refuses a folder that another process has
locked, that can't be written, or that holds more names than a cache makes.

Such folders are siblings, and the version of their files is part of their names. Those of older versions are deleted,
unless they hold other files than a cache's.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from earthshine.errors import BlobError, UsageError
from earthshine.untrusted import shown

KEY_BYTES = 32
MOST_FILES = 1 << 19  # kept in a folder: 2 TB of K2.6's pages of 64 tokens
_MOST_NAMES = 2 * MOST_FILES  # looked at when a folder is opened
_NAME = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}\.kv")
_SHELF = re.compile(r"[0-9a-f]{2}")
_FOLDER_NAME = re.compile(r"(?:v([0-9]{1,9})-)?[0-9a-f]{32}")  # without a version: from before names had one
_UNFINISHED, _LOCK = "unfinished", "lock"  # there is one of each, since one thread of one process writes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PlaceTakenError(OSError):
    """Something that no cache makes, such as a folder, has the place of a file. Other files can be written."""


class PageFolder:
    """`path` is created if absent. Unfinished files of a killed process are removed. Raises UsageError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self._home = -1
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._home = os.open(path, _FOLDER)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise UsageError(
                f"The disk cache's folder {shown(path)} can't be made or opened: {_reason(error)}."
            ) from None
        try:
            self._lock = self._locked()
            self._discard_unfinished()
            os.close(os.open(_UNFINISHED, _CREATE, 0o600, dir_fd=self._home))
            self._discard_unfinished()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UsageError(f"The disk cache can't write to {shown(path)}: {_reason(error)}.") from None
            raise

    def scan(self) -> list[tuple[bytes, os.stat_result]]:
        """The key and stat of every file, the least recently used first. Raises UsageError for too many files, and
        OSError."""
        found = []
        n_names = 0
        for shelf in (f"{number:02x}" for number in range(256)):
            for entry in self._entries(shelf):
                n_names += 1
                if n_names > _MOST_NAMES:
                    raise UsageError(
                        f"The disk cache's folder {shown(self.path)} holds more than {_MOST_NAMES} files; "
                        "empty it or name another."
                    )
                if _is_page(entry, shelf):
                    with suppress(FileNotFoundError):
                        key = bytes.fromhex(entry.name.removesuffix(".kv"))
                        found.append((key, entry.stat(follow_symlinks=False)))
        found.sort(key=lambda each: (each[1].st_mtime_ns, each[0]))
        return found

    def open(self, key: bytes) -> BinaryIO:
        """Open a file for reading. Raises OSError, and BlobError where the name is not that of a regular file."""
        shelf = os.open(_shelf(key), _FOLDER, dir_fd=self._home)
        try:
            descriptor = os.open(_name(key), _READ, dir_fd=shelf)
        finally:
            os.close(shelf)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BlobError(f"{_name(key)} is not a regular file.")
        return open(descriptor, "rb")

    def write(self, key: bytes, fill: Callable[[BinaryIO], None], stamp_ns: int) -> int:
        """Replace or create a file with what `fill` writes. Returns the bytes that it occupies.

        Raises OSError and what `fill` raises; nothing has changed then.
        """
        self._discard_unfinished()
        try:
            with open(os.open(_UNFINISHED, _CREATE, 0o600, dir_fd=self._home), "wb") as file:
                fill(file)
                file.flush()
                occupied = occupied_bytes(os.fstat(file.fileno()))
                self.stamp(file, stamp_ns)
            self._put(key)
        except BaseException:
            with suppress(OSError):
                self._discard_unfinished()
            raise
        return occupied

    def _put(self, key: bytes) -> None:
        """Give the unfinished file its name."""
        with suppress(FileExistsError):
            os.mkdir(_shelf(key), 0o700, dir_fd=self._home)
        with self._shelf_of(key) as shelf:
            os.rename(_UNFINISHED, _name(key), src_dir_fd=self._home, dst_dir_fd=shelf)

    @contextmanager
    def _shelf_of(self, key: bytes) -> Iterator[int]:
        """The folder of the file. Errors of what has the place of either are PlaceTakenError."""
        try:
            with _opened(_shelf(key), _FOLDER, self._home) as shelf:
                yield shelf
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
                raise
            raise PlaceTakenError(error.errno, error.strerror, f"{_shelf(key)}/{_name(key)}") from None

    def stamp(self, file: BinaryIO, stamp_ns: int) -> None:
        """Set the time of the last use, by which `scan` sorts. A disk that refuses this only loses the order."""
        with suppress(OSError, OverflowError):
            os.utime(file.fileno(), ns=(stamp_ns, stamp_ns))

    def remove(self, key: bytes) -> None:
        """Delete a file, if it is there. Raises OSError."""
        with suppress(FileNotFoundError), self._shelf_of(key) as shelf:
            os.unlink(_name(key), dir_fd=shelf)

    def close(self) -> None:
        """Unlock the folder for the next process. No method may be called afterwards."""
        held, self._lock, self._home = (self._lock, self._home), -1, -1
        for descriptor in held:
            if descriptor >= 0:
                os.close(descriptor)

    def _locked(self) -> int:
        descriptor = os.open(
            _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._home
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 20)
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            who = f"process {int(holder)}" if holder.isdigit() else "another process"
            raise UsageError(
                f"The disk cache in {shown(self.path)} is in use by {who}; name another folder for this one."
            ) from None
        with suppress(OSError):  # a full disk: only the name in the refusal above is lost
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d" % os.getpid())
        return descriptor

    def _discard_unfinished(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(_UNFINISHED, dir_fd=self._home)

    def _entries(self, shelf: str) -> Iterator[os.DirEntry[str]]:
        try:
            descriptor = os.open(shelf, _FOLDER, dir_fd=self._home)
        except FileNotFoundError:
            return
        except OSError:  # a link or a file, where only folders that are made here belong
            os.unlink(shelf, dir_fd=self._home)
            return
        try:
            with os.scandir(descriptor) as entries:
                yield from entries
        finally:
            os.close(descriptor)


def folder_name(version: int, digest: bytes) -> str:
    """The name of the folder for files of this version; `digest`, 16 bytes, names their model and layout."""
    return f"v{version}-{digest.hex()}"


def remove_older(parent: Path, version: int) -> None:
    """Delete the folders in `parent` of versions below this one, except those in use and those that hold other files
    than a cache's. What can't be deleted is tried again next time."""
    with suppress(OSError), _opened(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as home:
        with os.scandir(home) as entries:
            found = [match for entry in entries if (match := _FOLDER_NAME.fullmatch(entry.name))]
        for name in (match[0] for match in found if int(match[1] or 0) < version):
            with suppress(OSError):
                _remove_folder(home, name)


def _remove_folder(parent: int, name: str) -> None:
    """Raises OSError where the folder is in use or has no lock, as every one that was made here has."""
    with _opened(name, _FOLDER, parent) as home, _opened(_LOCK, _READ, home) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _holds_pages_alone(home):
            return
        for shelf in filter(_SHELF.fullmatch, os.listdir(home)):
            with _opened(shelf, _FOLDER, home) as pages:
                for page in filter(_NAME.fullmatch, os.listdir(pages)):
                    os.unlink(page, dir_fd=pages)
            os.rmdir(shelf, dir_fd=home)
        for file in (_UNFINISHED, _LOCK):
            with suppress(FileNotFoundError):
                os.unlink(file, dir_fd=home)
        os.rmdir(name, dir_fd=parent)


def _holds_pages_alone(home: int) -> bool:
    """Whether everything in a folder has a name and a kind that only a cache gives."""
    with os.scandir(home) as entries:
        for entry in entries:
            if _SHELF.fullmatch(entry.name):
                with _opened(entry.name, _FOLDER, home) as shelf, os.scandir(shelf) as pages:
                    if not all(_is_page(page, entry.name) for page in pages):
                        return False
            elif entry.name not in (_UNFINISHED, _LOCK) or not entry.is_file(follow_symlinks=False):
                return False
    return True


def _is_page(entry: os.DirEntry[str], shelf: str) -> bool:
    named = _NAME.fullmatch(entry.name) is not None and entry.name.startswith(shelf)
    return named and entry.is_file(follow_symlinks=False)


@contextmanager
def _opened(path: str | Path, flags: int, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def occupied_bytes(state: os.stat_result) -> int:
    """Bytes that a file takes on the disk: at least its length, since some filesystems allocate blocks later."""
    return max(state.st_blocks * 512, state.st_size)


def _shelf(key: bytes) -> str:
    return key[:1].hex()


def _name(key: bytes) -> str:
    return f"{key.hex()}.kv"


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or "unknown reason" if isinstance(error, OSError) else "its name is not one"
