"""Shows hostile replies on the browser page, and fails if one runs script, asks another host or leaves a trap.

    python tools/fuzz_page.py --replies 100000 --seed 1

Needs Chromium (Debian: apt-get install chromium). The tests do the same with few replies.
"""

import argparse
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from browser.chromium import Browser
from browser.fuzz import fuzz

from earthshine.server.http.pages import page_files, page_headers


class _Files(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        file = page_files().get(self.path)
        content = file.read_bytes() if file else b""
        self.send_response(200 if file else 404)
        for name, value in (page_headers(file) if file else {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Prints what was found, and ends with 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser, began = Browser(Path(profile)), time.monotonic()
        wrong = fuzz(browser, f"http://127.0.0.1:{server.server_port}/", args.replies, args.seed)
        browser.close()
    print(
        f"{args.replies} replies, {time.monotonic() - began:.0f} s, {len(wrong)} of them wrong", *wrong[:20], sep="\n"
    )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
