"""The models in the folder of downloads: each one's size and state, and its removal.

Nothing outside of that folder is removed: links in it are, their targets are not.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from earthshine.errors import CheckpointError, EarthshineError, SourceError
from earthshine.hub.find import snapshot
from earthshine.hub.place import model_folder, model_folders
from earthshine.settings import read_settings
from earthshine.spec import load_spec
from earthshine.storage.index import shard_names, shard_path
from earthshine.untrusted import shown


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A model in the folder of downloads.

    nbytes: what its files occupy, parts of files included. family: of its config, None for one that is not read.
    n_shards: weight files that it needs, of which `n_absent` are not there; both 0 without a readable config and index.
    damage: what is wrong with the index of its weights or with one of them, or "". unreadable: whether this user may
    not look at it. elsewhere: where its files are if its folder or its blobs are a link out of the folder of downloads;
    that may not exist.
    """

    name: str
    folder: Path
    nbytes: int
    family: str | None
    n_shards: int
    n_absent: int
    damage: str
    unreadable: bool
    elsewhere: Path | None

    @property
    def whole(self) -> bool:
        """Whether the config and all weights are there."""
        return self.n_shards > 0 and not self.n_absent


def downloaded() -> list[Downloaded]:
    """Every model in the folder of downloads, also those that other programs downloaded."""
    return [_look(name, folder) for name, folder in model_folders()]


def find_downloaded(name: str) -> Downloaded:
    """The model with this id; raises SourceError for one that is not in the folder of downloads."""
    known = model_folders()
    folder = model_folder(name)
    if (name, folder) not in known:
        names = ", ".join(other for other, _ in known[:8])
        raise SourceError(
            f"{shown(name)} is not in the folder of downloads, {shown(read_settings().downloads)}"
            + (f"; there are {names}." if names else ", which holds no model.")
        )
    return _look(name, folder)


def _look(name: str, folder: Path) -> Downloaded:
    family, n_shards, n_absent, damage, unreadable = None, 0, 0, "", False
    try:
        here = snapshot(folder)
        unreadable = not all(map(_may_read, (folder, folder / "snapshots", here, here / "config.json")))
        family = load_spec(here).family
        shards = shard_names(here)
        n_shards, n_absent = len(shards), sum(not _is_there(here, shard) for shard in shards)
    except CheckpointError as error:
        damage = str(error)
    except EarthshineError:  # no config yet, or another kind of model
        pass
    except OSError as error:
        damage = f"it can't be read: {error.strerror}"
    occupied = sum(_files(folder).values())
    return Downloaded(name, folder, occupied, family, n_shards, n_absent, damage, unreadable, _elsewhere(folder))


def _may_read(path: Path) -> bool:
    """Whether this user may read a file or folder. One that is not there is not refused."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return not isinstance(error, PermissionError)
    return os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0))


def _is_there(folder: Path, shard: str) -> bool:
    """Whether a weight file is there. Raises CheckpointError for what can't be one, and OSError."""
    try:
        mode = os.stat(shard_path(folder, shard)).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{shown(shard)} is not a regular file.")
    return True


def _files(folder: Path) -> dict[str, int]:
    """Real path and bytes of each file that a model's folder and its blobs hold, and of those in the folder of
    downloads that they lead to, where the library keeps files that models share. Links to other files do not count."""
    found: dict[str, int] = {}
    home = os.path.join(os.path.realpath(read_settings().downloads), "")
    for top in (folder, folder / "blobs", *_entries(folder / "snapshots")):
        roots = (os.path.join(os.path.realpath(top), ""), home)
        for place, below, names in os.walk(top):
            if not roots[0].startswith(home):
                below.clear()  # a link out of the folder of downloads may lead to a whole disk
            for path in (os.path.realpath(os.path.join(place, name)) for name in names):
                with suppress(OSError):
                    if path.startswith(roots):
                        found[path] = os.stat(path).st_size
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing for one that can't be read."""
    with suppress(OSError):
        return [folder / name for name in os.listdir(folder)]
    return []


def _elsewhere(folder: Path) -> Path | None:
    root = Path(os.path.realpath(read_settings().downloads))
    real = (Path(os.path.realpath(path)) for path in (folder, folder / "blobs"))
    return next((path for path in real if not path.is_relative_to(root)), None)


def freed_bytes(model: Downloaded) -> int:
    """What `remove` frees: not what lies elsewhere, nor what another model uses too."""
    if model.elsewhere is not None:
        return 0
    others = (folder / "blobs" for _, folder in model_folders() if folder != model.folder)
    shared = {os.path.realpath(blob) for blobs in others for blob in _entries(blobs)}
    return sum(nbytes for path, nbytes in _files(model.folder).items() if path not in shared)


def remove(model: Downloaded) -> None:
    """Remove a model from the folder of downloads.

    Raises SourceError if a process that can be looked at has one of its files open. Files that it shares with
    another model stay until that goes too.
    """
    user = _user_of(model.folder)
    if user is not None:
        raise SourceError(f"{model.name} is in use by {user}; end that first.")
    if model.folder.is_symlink():
        model.folder.unlink()
        return
    _remove_by_library(model)
    if model.folder.exists():  # a download that was interrupted early, which the library does not list
        shutil.rmtree(model.folder)
    shutil.rmtree(read_settings().downloads / ".locks" / model.folder.name, ignore_errors=True)


def _remove_by_library(model: Downloaded) -> None:
    """The library knows which files of its shared store no other model uses."""
    from huggingface_hub import scan_cache_dir

    try:
        cache = scan_cache_dir(read_settings().downloads)
    except OSError as error:
        raise SourceError(
            f"{model.name} is not removed: which of its files other models use can't be found out, because "
            f"{shown(str(error.filename))} can't be read ({error.strerror})."
        ) from None
    repos = [repo for repo in cache.repos if repo.repo_path.name == model.folder.name]
    if repos:  # alone, because a copy of the repository may have a commit of the same hash
        commits = (revision.commit_hash for revision in repos[0].revisions)
        replace(cache, repos=frozenset(repos)).delete_revisions(*commits).execute()


def _user_of(folder: Path) -> str | None:
    """A process that has a file of the model open, as "name (process 123)"; None where none is seen."""
    roots = tuple(os.path.realpath(path) + os.sep for path in (folder, folder / "blobs"))
    blobs = {os.path.realpath(path) for path in _entries(folder / "blobs")}
    for process in Path("/proc").glob("[0-9]*"):
        if any(path in blobs or path.startswith(roots) for path in _open_files(process)):
            try:
                name = (process / "comm").read_text().strip()
            except (OSError, ValueError):
                name = "a process"
            return f"{ascii(name)[1:-1]} (process {process.name})"
    return None


def _open_files(process: Path) -> Iterator[str]:
    """Paths of the files that a process has open; none for another user's, which can't be looked at."""
    with suppress(OSError):
        for entry in os.listdir(process / "fd"):
            with suppress(OSError):
                yield os.readlink(process / "fd" / entry)
