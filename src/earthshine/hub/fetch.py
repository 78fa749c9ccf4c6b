"""Files from the hub, several at a time, each resumed where an earlier process stopped and checked by its digest.

huggingface_hub drops the part of a file that has arrived when its process ends: of Kimi-K2.6, with files of 9 GB and
eight of them at a time, up to 70 GB; and it takes the names of files in its cache from headers of the hub's answers.
Here the part stays as `blobs/DIGEST.incomplete`, the name that the library's own tools know, the whole file becomes
`blobs/DIGEST`, and DIGEST is the listing's. Requests and their repetition are the library's.
"""

import fcntl
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.errors import SourceError
from earthshine.hub.place import part_bytes
from earthshine.settings import read_settings

_AT_ONCE = 8
_PIECE_BYTES = 1 << 20
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}{unit} of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. digest: its blob's name, which is its SHA-256 where it `is_large` (stored by LFS or Xet),
    and git's SHA-1 otherwise."""

    path: str
    nbytes: int
    digest: str
    is_large: bool

    def part(self, blobs: Path) -> Path:
        """The path of the part that has been downloaded, which need not exist."""
        return blobs / f"{self.digest}.incomplete"

    def arrived(self, blobs: Path) -> int:
        """Bytes of it that an earlier download left and the next one keeps."""
        nbytes = part_bytes(self.part(blobs))
        return nbytes if nbytes <= self.nbytes else 0

    def hasher(self) -> Any:
        """What computes `digest` from the file's bytes."""
        if self.is_large:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.nbytes}\0".encode(), usedforsecurity=False)


class _Stopped(Exception):
    """Another file failed, or the user interrupted."""


class _Part(io.FileIO):
    """What has arrived of a file, with the digest of these bytes; the lock is held until it is closed.

    Raises SourceError if another process writes to it, and for more bytes than the file has.
    """

    def __init__(self, file: RemoteFile, blobs: Path, stop: threading.Event) -> None:
        descriptor = os.open(file.part(blobs), _OPEN, 0o666)
        super().__init__(descriptor, "r+b")
        self._stop, self._file = stop, file
        self._digest = file.hasher()
        try:
            fcntl.flock(self, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise SourceError(f"Another process is downloading {file.path}; wait for it, or end it.") from None
        if os.fstat(descriptor).st_size > file.nbytes:
            self.truncate(0)
        while piece := self.read(_PIECE_BYTES):
            self._require_going()
            self._digest.update(piece)

    def _require_going(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def write(self, data: Any) -> int:
        """Write all of `data`; a full disk keeps what it can hold."""
        self._require_going()
        if self.tell() + len(data) > self._file.nbytes:
            raise SourceError(f"The hub sends more of {self._file.path} than the {self._file.nbytes} bytes it listed.")
        view = memoryview(data)
        while len(view):
            written = super().write(view)
            self._digest.update(view[:written])
            view = view[written:]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Only to the empty file: the server sends all of it again."""
        if size if size is not None else self.tell():
            raise ValueError("a part is emptied, or kept")
        self._digest = self._file.hasher()
        return super().truncate(0)

    def hexdigest(self) -> str:
        return str(self._digest.hexdigest())


def fetch_files(name: str, commit: str, blobs: Path, files: Sequence[RemoteFile], *, show: bool = True) -> None:
    """Fetch `files` into `blobs`, with a progress bar on a terminal if `show`.

    Raises SourceError for a file that another process fetches or that arrives damaged, OSError for the disk, and
    the library's errors for the network. Whatever happens, what has arrived stays.
    """
    from huggingface_hub.utils.tqdm import tqdm

    if not files:
        return
    blobs.mkdir(parents=True, exist_ok=True)
    total, arrived = sum(file.nbytes for file in files), sum(file.arrived(blobs) for file in files)
    shown_as = {"unit": "iB", "unit_scale": True, "unit_divisor": 1024, "bar_format": _BAR}
    shown_as["disable"] = None if show else True  # None: on a terminal only
    bar = tqdm(desc=name, total=total, initial=arrived, **shown_as)  # type: ignore[no-untyped-call]
    with bar, _small_pieces():
        _Workers(name, commit, blobs, bar).run(files)


@contextmanager
def _small_pieces() -> Iterator[None]:
    """With the library's pieces of 10 MiB the progress of a slow link shows nothing for a minute."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


class _Workers:
    """Threads that take one file after the other until all are there or one has failed."""

    def __init__(self, name: str, commit: str, blobs: Path, bar: Any) -> None:
        self._source, self._blobs, self._bar = (name, commit), blobs, bar
        self._stop = threading.Event()
        self._failures: list[Exception] = []

    def run(self, files: Sequence[RemoteFile]) -> None:
        """Raises the first failure. The threads are daemons, so that Ctrl-C does not wait for the network."""
        self._left = list(reversed(files))
        count = min(_AT_ONCE, len(files))
        threads = [threading.Thread(target=self._work, name="download", daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()
        if self._failures:
            raise self._failures[0]

    def _work(self) -> None:
        try:
            while (file := self._next()) is not None:
                self._fetch(file)
        except _Stopped:
            pass
        except Exception as error:
            self._failures.append(error)
            self._stop.set()

    def _next(self) -> RemoteFile | None:
        with suppress(IndexError):
            return None if self._stop.is_set() else self._left.pop()
        return None

    def _fetch(self, file: RemoteFile) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        name, commit = self._source
        blob = self._blobs / file.digest
        with _Part(file, self._blobs, self._stop) as part:
            if blob.exists():  # another process has brought it since
                file.part(self._blobs).unlink(missing_ok=True)
                return
            url, headers = hf_hub_url(name, file.path, revision=commit), build_hf_headers(token=read_settings().token)
            begin = part.tell()
            http_get(url, part, resume_size=begin, headers=headers, expected_size=file.nbytes, _tqdm_bar=self._bar)
            if part.hexdigest() != file.digest:
                file.part(self._blobs).unlink()
                raise SourceError(
                    f"{file.path} of {name} arrived damaged: its digest is not the published one. "
                    "It was removed; run the same command again."
                )
            os.fsync(part.fileno())
            os.rename(file.part(self._blobs), blob)
