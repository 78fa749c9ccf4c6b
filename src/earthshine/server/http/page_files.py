"""The files of a page: by their paths, with the headers that protect it.

The content security policy permits a page's own scripts, styles and fonts and requests to its own server, and nothing
else: no script or style within the HTML, no evaluated text, and no HTML from a string (trusted-types 'none').
"""

import hashlib
from pathlib import Path

CHAT_PAGE = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".woff2": "font/woff2",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",  # a link in a reply must not even make the browser ask for its host's address
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_files(folder: Path = CHAT_PAGE) -> dict[str, Path]:
    """A page's files by their paths in addresses: each one's path below the folder, and / for index.html."""
    files = (file for file in sorted(folder.rglob("*")) if file.suffix in _TYPES and file.is_file())
    return {f"/{file.relative_to(folder)}": file for file in files} | {"/": folder / "index.html"}


def page_headers(file: Path) -> dict[str, str]:
    """The headers of a file of a page."""
    return _HEADERS | {"content-type": _TYPES[file.suffix]}


class PageFile:
    """A file of a page, read once."""

    def __init__(self, file: Path) -> None:
        self._content = file.read_bytes()
        self._headers = page_headers(file) | {"etag": f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'}

    def answer(self, known: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a client that has the version with the tag `known`."""
        if known == self._headers["etag"]:
            return 304, self._headers, b""
        return 200, self._headers, self._content
