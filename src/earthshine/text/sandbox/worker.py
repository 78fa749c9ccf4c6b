"""The child process that renders chat templates: Jinja's sandbox, and limits that the kernel enforces.

It reads requests from standard input and answers each on standard output; both are 8 bytes of length, little endian,
then UTF-8. Before the first request it gives up opening files and sockets and starting processes. Each request has a
limit of memory, beyond which Python raises MemoryError, and limits of processor time and wall-clock time, at which the
kernel ends the process. Imports nothing of the package, so that the process starts fast and stays small.

What escaped Jinja's sandbox could still send signals to the same user's processes and run another program in place of
this one. For root the kernel does not apply the limit of processes, and root can lift the other limits.
"""

import codecs
import json
import os
import resource
import signal
import sys
import textwrap  # noqa: F401  (the filter wordwrap imports it, but no file can be opened then)
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2.debug  # noqa: F401  (Jinja imports it when a template fails, but no file can be opened then)
from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY_BYTES = 256 << 20  # of address space; Python and Jinja take 28 MiB of it
_MEMORY_FACTOR = 32  # further bytes for each byte of a request
_WALL_SECONDS = 60.0
_MAX_TEXT = 16 << 20  # characters
_LIMITS = (signal.SIGPROF, signal.SIGALRM)  # what ends the process at the limits of time


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Refused(Exception):
    """The template called raise_exception."""


class _Environment(ImmutableSandboxedEnvironment):
    """What published templates expect, as in transformers: trimmed blocks, loop controls and JSON without escapes."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it may not use the attribute {attribute[:80]!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str = "") -> None:
    raise _Refused(str(message)[:500])


_ENVIRONMENT = _Environment()


@lru_cache(16)
def _compile(source: str, add_preserve_thinking: bool) -> Template:
    tree = _ENVIRONMENT.parse(source)
    if add_preserve_thinking:
        _add_preserve_thinking(tree)
    return Template.from_code(_ENVIRONMENT, _ENVIRONMENT.compile(tree), _ENVIRONMENT.make_globals(None))


def _name(name: str) -> nodes.Name:
    return nodes.Name(name, "load", lineno=1)


def _add_preserve_thinking(tree: nodes.Template) -> None:
    """Adds the flag `preserve_thinking` to K2.5's template, which does not have it.

    The template splits messages into `hist_msgs`, whose reasoning it drops, and `suffix_msgs`, whose reasoning it
    keeps unless `thinking` is false. With the flag, the first is [] and the second `messages`, and in the loop over
    the second the test `thinking is false` fails.
    """
    all_messages = {"hist_msgs": nodes.List([], lineno=1), "suffix_msgs": _name("messages")}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and assign.target.name in all_messages:
            kept = all_messages[assign.target.name]
            assign.node = nodes.CondExpr(_name("preserve_thinking"), kept, assign.node, lineno=1)
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.iter, nodes.Name) and loop.iter.name == "suffix_msgs":
            for test in list(loop.find_all(nodes.Test)):
                if test.name == "false" and isinstance(test.node, nodes.Name) and test.node.name == "thinking":
                    test.node = nodes.CondExpr(_name("preserve_thinking"), nodes.Const(True), test.node, lineno=1)


def _answer(raw: bytes) -> bytes:
    """The first letter of an answer says what follows: t, the text; r, the template's refusal; f, why it failed."""
    try:
        request = json.loads(raw.decode("utf-8", "surrogatepass"))
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        template = _compile(request["source"], request["add_preserve_thinking"])
        if request["variables"] is None:
            return b"t"
        now = datetime.fromisoformat(request["now"])
        text = template.render(request["variables"], strftime_now=now.strftime)
        if len(text) > _MAX_TEXT:
            return f"fit prints more than {_MAX_TEXT} characters".encode()
        return b"t" + text.encode("utf-8", "surrogatepass")
    except _Refused as error:
        answer = f"r{error}"
    except RecursionError:
        answer = "fit nests too deeply or calls itself without end"
    except MemoryError:
        answer = "fit takes more memory than a rendering may"
    except (ImportError, OSError):  # whose message has the path of a file of this machine
        answer = "fit needs a file, and a template can't open files"
    except Exception as error:  # a template can raise whatever Python's operators raise
        answer = f"f{str(error)[:300] or type(error).__name__}"
    return answer.encode("utf-8", "surrogatepass")


def _read(n_bytes: int) -> bytes:
    """Exactly `n_bytes` of standard input; ends the process when the parent has closed it."""
    pieces = []
    while n_bytes:
        piece = os.read(0, min(n_bytes, 1 << 20))
        if not piece:
            sys.exit()
        pieces.append(piece)
        n_bytes -= len(piece)
    return b"".join(pieces)


def _limit_memory(n_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> None:
    """Answers requests until standard input is closed."""
    codecs.lookup("unicode_escape")  # Jinja decodes literals with it, and Python finds it in a file
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LIMITS)  # a parent's mask and ignored signals are inherited
    for number in _LIMITS:
        signal.signal(number, signal.SIG_DFL)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    while True:
        size = int.from_bytes(_read(8), "little")
        signal.setitimer(signal.ITIMER_REAL, _WALL_SECONDS)
        _limit_memory(_MEMORY_BYTES + _MEMORY_FACTOR * size)
        answer = _answer(_read(size))
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for part in (len(answer).to_bytes(8, "little"), answer):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(1, rest) :]
        del answer, part, rest  # up to 64 MiB, of the next request's memory
