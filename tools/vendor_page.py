"""Renews the libraries of the browser page from npm, as src/earthshine/server/page/vendor/manifest.json lists them.

    python tools/vendor_page.py                    # fetch every file again and verify its checksum
    python tools/vendor_page.py katex=0.19.1       # another version: its files, licence and checksums

The files are those of the package, byte for byte; the manifest gives each one's path there, and its SHA-256 here. Of a
library within another's file ("within") only the licence is kept.
Needs npm, which checks the package itself.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "src/earthshine/server/page/vendor"
MANIFEST = FOLDER / "manifest.json"


def packed(name: str, version: str, folder: Path) -> tarfile.TarFile:
    """The package's archive, downloaded into `folder`."""
    done = subprocess.run(
        ["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder, check=True, capture_output=True, text=True
    )
    return tarfile.open(folder / done.stdout.split()[-1])


def content(archive: tarfile.TarFile, path: str) -> bytes:
    """The bytes of one file of a package. Raises SystemExit where it has none of this name."""
    try:
        found = archive.extractfile(f"package/{path}")
    except KeyError:
        found = None
    if found is None:
        raise SystemExit(f"{archive.name} has no file {path}; mend its entry in {MANIFEST}")
    return found.read()


def renew(library: dict[str, Any], version: str) -> None:
    """Writes the library's files. Raises SystemExit if those of the listed version have other checksums."""
    folder = FOLDER / library["folder"]
    with tempfile.TemporaryDirectory() as temporary:
        archive = packed(library["package"], version, Path(temporary))
        files = {path: content(archive, path) for path in library["files"]}
        library["licence"] = json.loads(content(archive, "package.json"))["license"]
    sums = {path: hashlib.sha256(found).hexdigest() for path, found in files.items()}
    if version == library["version"]:
        for path, checksum in library["files"].items():
            if checksum and checksum != sums[path]:
                raise SystemExit(f"{path} of {library['package']} {version} is not what the manifest lists")
    library["version"], library["files"] = version, sums
    shutil.rmtree(folder, ignore_errors=True)
    for path, found in files.items():
        target = folder / path.removeprefix(library["below"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found)


def main() -> None:
    """Renews all libraries, or those that the arguments name."""
    libraries = json.loads(MANIFEST.read_text(encoding="utf-8"))
    wanted = dict(each.split("=", 1) for each in sys.argv[1:])
    if unknown := wanted.keys() - {library["package"] for library in libraries}:
        raise SystemExit(f"the manifest lists no {', '.join(sorted(unknown))}")
    for library in libraries:
        if not wanted or library["package"] in wanted:
            renew(library, wanted.get(library["package"], library["version"]))
    MANIFEST.write_text(json.dumps(libraries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
