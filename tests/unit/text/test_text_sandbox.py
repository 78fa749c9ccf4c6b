"""Hostile templates: each is stopped within its limits, and the next rendering works."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest

from earthshine.errors import TextError, UnavailableError
from earthshine.text import ChatTemplate
from earthshine.text.sandbox import TEMPLATE_PROCESS, process
from earthshine.text.sandbox.process import TemplateProcess

from .hostile_templates import HEAVY, SPENDERS

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take processor time without end is ended soon."""
    monkeypatch.setattr(process, "_SECONDS", 0.3)


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process of its own for this test."""
    TEMPLATE_PROCESS.stop()
    yield
    TEMPLATE_PROCESS.stop()


def child_pid() -> int:
    assert TEMPLATE_PROCESS._child is not None
    return TEMPLATE_PROCESS._child.pid


def peak_bytes() -> int:
    """The most memory that the child has held."""
    lines = Path(f"/proc/{child_pid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def renders() -> bool:
    return ChatTemplate("{{ messages[0].content }}").render(MESSAGES) == "hello"


@pytest.mark.usefixtures("short_time")
@pytest.mark.parametrize("name", SPENDERS)
def test_template_that_spends_without_end_is_stopped(name: str) -> None:
    with pytest.raises(TextError, match="chat template"):
        ChatTemplate(SPENDERS[name]).render(MESSAGES)
    assert renders()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", [*HEAVY, "text sum", "list sum", "held slices", "held literals", "indent"])
def test_memory_of_a_rendering_is_bounded(name: str) -> None:
    assert renders()
    pid = child_pid()
    with suppress(TextError):
        ChatTemplate((HEAVY | SPENDERS)[name]).render(MESSAGES)
    assert renders()
    if child_pid() == pid:  # else the kernel ended it, by the limit of time
        assert peak_bytes() < 264 << 20


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].clear() }}",
        "{{ lipsum() }}",
        "{{ cycler('a')() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as x %}",
        "{% from 'x' import x %}",
        "{% extends 'x' %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{{ missing.attribute }}",
        "{{ missing() }}",
        "{{ 1 / 0 }}",
        "{{ 1()() }}",
        "{% for %}",
        "{{",
        "{{ 1|no_such_filter }}",
        "{{ 1 is no_such_test }}",
    ],
)
def test_template_may_not_reach_python_objects_or_files(source: str) -> None:
    with pytest.raises(TextError, match="chat template"):
        ChatTemplate(source).render(MESSAGES)


def test_refusal_of_the_template_is_passed_on() -> None:
    with pytest.raises(TextError, match="refuses these messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("  {% if true %}\n a\n  {% endif %}\nb", " a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% for i in 'abc' %}{{ loop.index }}{{ i }}{{ loop.last }}{{ loop.cycle('x', 'y') }} {% endfor %}",
         "1aFalsex 2bFalsey 3cTruex "),
        ("{% for i in [[1], [2, [3]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "123"),
        ("{% for i in [3, 1, 2] if i > 1 %}{{ loop.previtem }}{{ i }}{% else %}none{% endfor %}", "332"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}", "a1"),
        ("{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}", "12c"),
        ("{% set n = namespace(a=1) %}{% for i in [5] %}{% set n.a = i %}{% endfor %}{{ n.a }}", "5"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{% filter upper %}b{% endfilter %}", "A1B"),
        ("{{ {'é': '<a>', 'b': [1, none, true]}|tojson }}", '{"é": "<a>", "b": [1, null, true]}'),
        ("{{ {'b': 1, 'a': [1]}|tojson(indent=1, sort_keys=true) }}", '{\n "a": [\n  1\n ],\n "b": 1\n}'),
        ("{{ 'x' ~ 1 ~ none }}{{ 'a' + 'b' }}{{ 2 * 'ab' }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}", "x1Noneababab3332"),
        ("{{ 'a-b-c'.split('-')[-1] }}{{ ' x '.strip() }}{{ 'abc'[::-1] }}{{ 'xay'.replace('a', 'b') }}", "cxcbaxby"),
        ("{{ 'a b'.split() }}{{ 'ab'.startswith('a') }}{{ 'a,b'.split(',', maxsplit=1)|join('+') }}",
         "['a', 'b']Truea+b"),
        ("{{ messages[0].get('name', 'none') }}{{ messages[0].items()|length }}{{ messages[0].role }}", "none2user"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}", "['hello']"),
        ("{{ [3, 1]|sort }}{{ [1, 2]|sum }}{{ [1, 1]|unique|list }}{{ [2, 3]|max }}{{ {'b': 1, 'a': 2}|dictsort }}",
         "[1, 3]3[1]3[('a', 2), ('b', 1)]"),
        ("{{ [1, 2]|first }}{{ [1, 2]|last }}{{ 'ab'|reverse }}{{ '3'|int + 1 }}{{ x|default('d') }}", "12ba4d"),
        ("{{ 'a\nb'|indent(2) }}|{{ ' a '|trim }}|{{ 2.567|round(1) }}|{{ 'ab'|list }}", "a\n  b|a|2.6|['a', 'b']"),
        ("{{ 'a b'|wordwrap(1) }}", "a\nb"),
        ("{{ '%s is %d%%' % ('a', 5) }}{{ '{} {b} {{}}'.format('x', b='y') }}", "a is 5%x y {}"),
        ("{{ x is defined }}{{ 1 is odd }}{{ 'a' in ['a'] }}{{ 'b' not in 'abc' }}{{ [] is sequence }}",
         "FalseTrueTrueFalseTrue"),
        ("{{ dict(a=1).a }}{{ range(1, 4)|list }}{{ (1, 2)[0] }}{{ not none }}{{ 'y' if 0 else 'n' }}",
         "1[1, 2, 3]1Truen"),
    ],
)  # fmt: skip
def test_what_templates_need_works(source: str, text: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == text


def test_rendering_does_not_change_the_messages() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a", "name": None}]
    ChatTemplate("{% for m in messages %}{{ m }}{% endfor %}").render(messages)
    assert messages == [{"role": "user", "content": "a", "name": None}]


def test_a_long_conversation_is_within_the_bounds(tiny_template: ChatTemplate) -> None:
    messages = [{"role": "user", "content": "hello " * 20}, {"role": "assistant", "content": "x" * 200}] * 1000
    assert tiny_template.render(messages).count("<|im_end|>") == 2000


def test_template_has_no_files_sockets_or_processes() -> None:
    """Should a template escape Jinja's sandbox, the kernel still refuses it these."""
    assert renders()
    limits = Path(f"/proc/{child_pid()}/limits").read_text().splitlines()
    for what in ("Max open files", "Max processes", "Max file size", "Max core file size"):
        assert next(line for line in limits if line.startswith(what)).split()[-3:-1] == ["0", "0"], what


def test_child_does_not_have_the_parents_environment() -> None:
    assert renders()
    names = {entry.split("=")[0] for entry in Path(f"/proc/{child_pid()}/environ").read_text().split("\0") if entry}
    assert names <= {"LD_LIBRARY_PATH", "LC_CTYPE"}


def test_child_that_was_killed_is_started_again() -> None:
    assert renders()
    pid = child_pid()
    os.kill(pid, signal.SIGKILL)
    assert renders(), "the first request may still find it alive"
    assert child_pid() != pid


def test_request_whose_child_is_killed_is_sent_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the system, when memory runs out."""
    template, read, killed = ChatTemplate("{{ messages[0].content }}"), process._read, list[int]()

    def kill_first(pipe: IO[bytes], n_bytes: int) -> bytes:
        if not killed:
            killed.append(child_pid())
            os.kill(killed[0], signal.SIGKILL)
            pipe.read()
            raise EOFError
        return read(pipe, n_bytes)

    monkeypatch.setattr(process, "_read", kill_first)
    assert template.render(MESSAGES) == "hello"
    assert child_pid() != killed[0]


def test_children_that_all_end_are_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    template, started = ChatTemplate("a"), list[int]()

    def start() -> "subprocess.Popen[bytes]":
        started.append(1)
        return subprocess.Popen(["false"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    TEMPLATE_PROCESS.stop()
    with monkeypatch.context() as patched:
        patched.setattr(process, "_start", start)
        with pytest.raises(UnavailableError, match=r"renders chat templates does not work .* try again later"):
            template.render(MESSAGES)
    assert len(started) == 2
    assert renders()


def test_child_that_was_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's limits of time have no effect on it, and the parent's own is far away."""
    monkeypatch.setattr(process, "_WALL_SECONDS", 1e6)
    monkeypatch.setattr(process, "_CHECK_SECONDS", 0.05)
    assert renders()
    pid = child_pid()
    os.kill(pid, signal.SIGSTOP)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(renders()), daemon=True)
    thread.start()
    thread.join(120)
    assert answers == [True]
    assert child_pid() != pid


def test_child_that_only_takes_long_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by how long it takes, but by its state."""
    monkeypatch.setattr(process, "_CHECK_SECONDS", 0.001)
    assert renders()
    pid = child_pid()
    assert (
        ChatTemplate("{% for i in range(900) %}{% for j in range(300) %}{% endfor %}{% endfor %}done").render(MESSAGES)
        == "done"
    )
    assert child_pid() == pid


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ lipsum(n=1, html=false) }}"])
def test_error_does_not_name_a_file_of_this_machine(source: str) -> None:
    with pytest.raises(TextError, match="it needs a file, and a template can't open files") as caught:
        ChatTemplate(source).render(MESSAGES)
    assert "/" not in str(caught.value)


@pytest.mark.usefixtures("short_time", "fresh")
@pytest.mark.parametrize("ignored", [True, False])
def test_time_is_limited_where_the_parent_ignores_or_blocks_the_signals(ignored: bool) -> None:
    before, blocked = signal.getsignal(signal.SIGPROF), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        if ignored:
            signal.signal(signal.SIGPROF, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
        with pytest.raises(TextError, match=r"processor time|takes longer"):
            ChatTemplate(SPENDERS["nested loops"]).render(MESSAGES)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGPROF, before)


def test_interrupted_rendering_does_not_leave_its_answer_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> bytes:
        raise KeyboardInterrupt

    template = ChatTemplate("first")
    with monkeypatch.context() as patched:
        patched.setattr(process, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render(MESSAGES)
    assert renders()


def test_threads_get_their_own_answers() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(20):
            text = template.render([{"role": "user", "content": name * 1000}])
            wrong.extend([name] if text != name * 1000 else [])

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_forked_process_renders_in_a_child_of_its_own() -> None:
    assert renders()
    pid = child_pid()
    reading, writing = os.pipe()
    forked = os.fork()
    if forked == 0:
        try:
            os.write(writing, json.dumps([renders(), child_pid()]).encode())
            TEMPLATE_PROCESS.stop()
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(forked, 0)
    with os.fdopen(reading, "rb") as answer:
        works, its_pid = json.loads(answer.read())
    assert works
    assert its_pid != pid
    assert renders()
    assert child_pid() == pid


def test_large_conversation_fits_into_memory(tiny_template: ChatTemplate) -> None:
    """The limit grows with the request: 12 Mi characters, of which one needs four bytes."""
    content = "\U0001f642" + "x" * (12 << 20)
    text = tiny_template.render([{"role": "user", "content": content}])
    assert content in text


@pytest.mark.usefixtures("fresh")
def test_small_conversations_are_rendered_after_a_huge_one() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    huge = [{"role": "user", "content": "x" * 150}, {"role": "assistant", "content": "y" * 150}] * 50000
    for _ in range(2):
        assert len(template.render(huge)) > 15000000
        for _ in range(3):
            assert renders()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", ["list sum", "held slices", "held literals"])
def test_memory_that_a_template_leaves_mapped_is_not_missing_from_the_next(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SECONDS", 60.0)
    with pytest.raises(TextError, match="chat template"):
        ChatTemplate(SPENDERS[name]).render(MESSAGES)
    assert ChatTemplate(HEAVY["characters"]).render(MESSAGES) == "9999999"
    assert renders()
    assert process._mapped_bytes(child_pid()) < 128 << 20


@pytest.mark.usefixtures("fresh")
def test_child_that_keeps_much_memory_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert renders()
    pid = child_pid()
    assert renders()
    assert child_pid() == pid
    with monkeypatch.context() as patched:
        patched.setattr(process, "_KEPT_BYTES", process._mapped_bytes(pid) // 2)
        assert renders()
    assert process._mapped_bytes(pid) == 0
    assert renders()
    assert child_pid() != pid


def test_answer_that_is_not_text_is_an_error_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("a")
    with monkeypatch.context() as patched:
        patched.setattr(process, "_read", lambda pipe, n_bytes: b"\x01" + bytes(7) if n_bytes == 8 else b"\xff")
        with pytest.raises(TextError, match="can't be rendered"):
            template.render(MESSAGES)
    assert renders()


def test_fork_during_a_request_sends_none_of_it() -> None:
    """One thread forks while another's request is in the buffer: the copy of the buffer is dropped."""
    reading, writing = os.pipe()
    parent = TemplateProcess()
    stdin, stdout = os.fdopen(writing, "wb"), os.fdopen(os.open(os.devnull, os.O_RDONLY), "rb")
    parent._child = cast("subprocess.Popen[bytes]", SimpleNamespace(stdin=stdin, stdout=stdout, returncode=None))
    stdin.write(b"a request")
    del stdin, stdout
    parent.forget()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""


def test_surrogates_pass_through() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render([{"role": "user", "content": "a\ud800b"}]) == "a\ud800b"
