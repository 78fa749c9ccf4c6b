"""The log of a server on standard error: its own lines, and what Python's logging has of faults."""

import contextlib
import logging
import sys

from earthshine.server.http.log import JsonFormatter


def write_line(line: str) -> None:
    """Write a line on standard error."""
    with contextlib.suppress(OSError):  # a closed standard error must not end replies
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def configure_log(as_json: bool) -> None:
    """Log faults with their tracebacks on standard error, and warnings of this package and, as JSON, of Python.
    Warnings of the HTTP server are about invalid requests, which are reported to their clients only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(asctime)s  %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    for name in ("earthshine", "py.warnings"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(as_json)
