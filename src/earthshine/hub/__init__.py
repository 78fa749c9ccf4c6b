"""MODEL to a folder: one on disk, one to download, or gleam. The only package that downloads."""

from earthshine.hub.download import Pending
from earthshine.hub.downloaded import Downloaded, downloaded, find_downloaded, freed_bytes, remove
from earthshine.hub.find import GLEAM, find_config, find_model, find_readable, size_on_disk
from earthshine.hub.place import model_folders

__all__ = [
    "GLEAM",
    "Downloaded",
    "Pending",
    "downloaded",
    "find_config",
    "find_downloaded",
    "find_model",
    "find_readable",
    "freed_bytes",
    "model_folders",
    "remove",
    "size_on_disk",
]
