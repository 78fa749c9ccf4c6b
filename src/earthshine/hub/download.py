"""Downloads an id's files: only those that are needed and missing, after a look at the disk's free space.

The listing is huggingface_hub's, and the folder of downloads has the layout of its cache. While the hub can't be
reached, a whole copy is used.
"""

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.errors import EarthshineError, SourceError
from earthshine.files import written_whole
from earthshine.hub.fetch import RemoteFile, fetch_files
from earthshine.hub.place import model_folder
from earthshine.machine.drive import free_bytes
from earthshine.plan.download import Download
from earthshine.settings import read_settings
from earthshine.storage.index import INDEX_NAME, is_shard, shard_names
from earthshine.units import format_bytes
from earthshine.untrusted import shown

# Whole names, because a pattern like tokenizer* would also fetch Python and pickles: only what Earthshine reads.
_SMALL = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "chat_template.jinja",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pending:
    """What a download still has to fetch: `files` are missing or incomplete; `size`: the missing bytes, in words."""

    name: str
    files: tuple[RemoteFile, ...]
    size: Download

    def require_space(self) -> None:
        """Raises SourceError if the disk can't hold what is missing."""
        if self.size.lacking_bytes:
            raise SourceError(
                f"{self.name} needs {self.size.sentence()}. Free {format_bytes(self.size.lacking_bytes)} more, or set "
                "EARTHSHINE_HOME to a folder on a larger disk."
            )


class Unreachable(SourceError):
    """The hub does not answer, or not with such a model."""


Announce = Callable[[Pending], None]


def pending_download(name: str) -> Pending:
    """What a download of an id would still fetch, from the hub's listing.

    Until the index of the weights is on disk, every shard of the repository counts. Raises SourceError if the hub
    can't be reached or knows no such model.
    """
    try:
        commit, listing = _listing(name)
    except Exception as error:  # the library raises errors of several others for what a network can do
        raise _failure(name, error) from None
    return _pending(name, commit, _needed(name, commit, listing))


def download(name: str, *, weights: bool, announce: Announce | None = None) -> Path:
    """The folder of an id's newest snapshot with the files that are needed, `weights` or the small ones alone.

    `announce` is called with what is missing of the weights, if anything is, before the first of them is fetched.
    Raises SourceError for an id that does not exist or has no safetensors weights, for a disk that is too small or
    full, and for a network that fails.
    """
    try:
        commit, listing = _listing(name)
    except EarthshineError:
        raise
    except Exception as error:
        return _copy_here(name, weights, error)
    if weights and not any(is_shard(file.path) for file in listing):
        raise SourceError(f"{name} has no safetensors weights; other formats, GGUF among them, are not read.")
    small = [file for file in listing if file.path in _SMALL or (weights and file.path == INDEX_NAME)]
    pending = _pending(name, commit, small)
    pending.require_space()
    folder = _fetched(pending, commit, small, show=False)
    if not weights:
        return folder
    needed = _needed(name, commit, listing)
    pending = _pending(name, commit, needed)
    pending.require_space()
    if announce is not None and pending.files:
        announce(pending)
    return _fetched(pending, commit, needed, show=True)


def _copy_here(name: str, weights: bool, error: Exception) -> Path:
    """The snapshot on disk, used while the hub can't be asked; raises `error` as a SourceError if a file is absent."""
    folder = model_folder(name)
    with suppress(OSError, ValueError):
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
        here = folder / "snapshots" / commit
        if _COMMIT.fullmatch(commit) and (here / "config.json").exists():
            shards = shard_names(here) if weights else []
            if all((here / shard).exists() for shard in shards):
                return here
    raise _failure(name, error) from None


def _listing(name: str) -> tuple[str, list[RemoteFile]]:
    """The newest commit and, of the files at its top, those that may be fetched.

    All of it becomes paths on this machine. Raises SourceError for a commit, a digest, a size or a name that is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=read_settings().token)
    commit = api.model_info(name).sha or ""
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"The hub's answer for {name} is damaged: {shown(commit)} is not a commit.")
    entries = api.list_repo_tree(name, revision=commit)
    files = (entry for entry in entries if isinstance(entry, RepoFile))
    return commit, [
        _remote_file(name, file) for file in files if file.path in (*_SMALL, INDEX_NAME) or is_shard(file.path)
    ]


def _remote_file(name: str, file: Any) -> RemoteFile:
    digest, form = (file.lfs.sha256, _SHA256) if file.lfs else (file.blob_id, _COMMIT)
    damaged = f"The hub's answer for {name} is damaged: "
    if "/" in file.path or not file.path.isprintable():
        raise SourceError(f"{damaged}{shown(file.path)} is not a file's name.")
    if not isinstance(digest, str) or not form.fullmatch(digest):
        raise SourceError(f"{damaged}{shown(digest)} is not the digest of {shown(file.path)}.")
    if type(file.size) is not int or file.size < 0:
        raise SourceError(f"{damaged}{shown(file.size)} is not the size of {shown(file.path)}.")
    return RemoteFile(file.path, file.size, digest, file.lfs is not None)


def _needed(name: str, commit: str, listing: list[RemoteFile]) -> list[RemoteFile]:
    """The files to fetch; the shards are those of the index once that is on disk."""
    snapshot = model_folder(name) / "snapshots" / commit
    if any(file.path == INDEX_NAME for file in listing) and not (snapshot / INDEX_NAME).exists():
        return listing
    shards = set(shard_names(snapshot))
    return [file for file in listing if not is_shard(file.path) or file.path in shards]


def _pending(name: str, commit: str, files: list[RemoteFile]) -> Pending:
    folder = model_folder(name)
    here, blobs = folder / "snapshots" / commit, folder / "blobs"
    missing = tuple(file for file in files if not (here / file.path).exists() and not (blobs / file.digest).exists())
    total = sum(file.nbytes for file in files)
    left = sum(file.nbytes - file.arrived(blobs) for file in missing)
    return Pending(name, missing, Download(total, total - left, folder, free_bytes(blobs)))


def _fetched(pending: Pending, commit: str, files: list[RemoteFile], show: bool) -> Path:
    """The folder of this commit with these files, which becomes the one that is used without the hub."""
    folder = model_folder(pending.name)
    here = folder / "snapshots" / commit
    try:
        fetch_files(pending.name, commit, folder / "blobs", pending.files, show=show)
        here.mkdir(parents=True, exist_ok=True)
        for file in files:
            if not (here / file.path).exists():
                _link(folder / "blobs" / file.digest, here / file.path)
    except Exception as error:
        raise _failure(pending.name, error) from None
    _note_newest(folder / "refs" / "main", commit)
    return here


def _link(blob: Path, path: Path) -> None:
    """Let `path` lead to the blob; on a disk without links, move the blob there."""
    path.unlink(missing_ok=True)  # a link that leads nowhere
    try:
        path.symlink_to(Path("..", "..", "blobs", blob.name))
    except OSError:
        os.replace(blob, path)


def _note_newest(main: Path, commit: str) -> None:
    """Write `refs/main`, which the library leaves as it is where a commit is asked for."""
    with suppress(OSError):  # a cache that can't be written to
        if not main.exists() or main.read_bytes() != commit.encode():
            main.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(main, None) as file:
                file.write(commit.encode())


def _failure(name: str, error: Exception) -> EarthshineError:
    """What to tell a person of an error that a network, a disk or the hub's library gave."""
    if isinstance(error, EarthshineError):
        return error
    has_data = any((model_folder(name) / "blobs").glob("*"))
    kept = "Downloaded data is kept; run the same command again to resume. " if has_data else ""
    code, place = (error.errno if isinstance(error, OSError) else None), shown(read_settings().downloads)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SourceError(
            f"{name} could not be downloaded whole: the disk of {place} takes no more ({os.strerror(code)}). {kept}"
            "Free some space first, or set EARTHSHINE_HOME to a folder on a larger disk."
        )
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return SourceError(
            f"{name} could not be downloaded: {place} can't be written to. Change its permissions, or set "
            "EARTHSHINE_HOME to another folder."
        )
    first = str(error).strip().splitlines()
    reason = (first[0] if first else type(error).__name__).removeprefix("Got: ").rstrip(".")
    return Unreachable(
        f"{name} is not a folder here and could not be downloaded: {reason}. {kept}Check the id and the network."
    )
