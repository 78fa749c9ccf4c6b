"""Templates as an attacker writes them: each ends as TextError, soon, and without much memory."""

import itertools
import tracemalloc
from typing import Any

import pytest

from earthshine.errors import TextError
from earthshine.text import ChatTemplate
from earthshine.text.sandbox import meter

MESSAGES = [{"role": "user", "content": "hello"}]
DOUBLING = "{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
SHARED = "{% set n = namespace(a=[1], b=[1]) %}" + DOUBLING
TUPLES = "{% set n = namespace(a=(1,)) %}{% for i in range(3000) %}{% set n.a = (n.a,) %}{% endfor %}"

SPENDERS = {
    "long range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loop filter": "{% for i in range(100000) %}{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(9999) %}{% for j in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endfor %}",
    "captured output": "{% set x %}{% for i in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endset %}",
    "macro output": "{% macro m() %}{% for i in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endmacro %}{{ m() }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching": "{% macro m(x) %}{% if x %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "text product": "{{ 'a' * 10 ** 12 }}",
    "text product, constant": "{{ 'a' * 1000000000000 }}",
    "list product": "{{ ([1] * 10 ** 9)|length }}",
    "text sum": "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "list sum": "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "power": "{{ 2 ** (10 ** 9) }}",
    "number product": "{% set n = namespace(a=9) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "shared, printed": SHARED + "{{ n.a }}",
    "shared, as JSON": SHARED + "{{ n.a|tojson }}",
    "shared, compared": SHARED + "{{ n.a == n.b }}",
    "shared, tested": SHARED + "{{ n.a is eq(n.b) }}",
    "shared, sought": SHARED + "{{ n.a in [n.b] }}",
    "deep key": TUPLES + "{{ {n.a: 1} }}",
    "deep index": TUPLES + "{{ {}[n.a] }}",
    "deep get": TUPLES + "{{ {}.get(n.a) }}",
    "deep call": TUPLES + "{{ n.a() }}",
    "deep unique": TUPLES + "{{ [n.a]|unique }}",
    "held slices": "{% set n = namespace(l=[], s='a' * 9999999) %}{% for i in range(999) %}"
    "{% set n.l = n.l + [n.s[1:]] %}{% endfor %}",
    "held literals": "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [["
    + "0," * 5000
    + "]] %}{% endfor %}",
    "slow method": "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% set x = s.count('ab') %}{% endfor %}",
    "split": "{{ ('a' * 9999999).split('a')|length }}",
    "split lines": "{{ ('\n' * 9999999).splitlines()|length }}",
    "characters": "{{ ('a' * 9999999)|list|length }}",
    "strip": "{% set s = 'ab' * 4999999 %}{{ s.strip(s) }}",
    "replace": "{% set s = 'a' * 999999 %}{{ s.replace('', s) }}",
    "replace filter": "{% set s = 'a' * 999999 %}{{ s|replace('a', s) }}",
    "join": "{% set s = 'a' * 99999 %}{{ s.join(s) }}",
    "indent": "{{ ('a\n' * 99999)|indent(999999) }}",
    "JSON indent": "{{ [1]|tojson(indent=999999999) }}",
    "JSON separators": "{{ [1, 2]|tojson(separators=('a' * 999999, 'b')) }}",
    "round": "{{ 5|round(10 ** 9, 'floor') }}",
    "width, %": "{{ '%1000000000d' % 1 }}",
    "width, format": "{{ '{:1000000000d}'.format(1) }}",
    "width, time": "{{ strftime_now('%1000000000d') }}",
    "digits": "{{ ('9' * 9999999)|int }}",
    "sum filter": "{{ ([[1] * 1000] * 1000)|sum(start=[])|length }}",
    "escapes": "{% set n = namespace(a='\"') %}{% for i in range(60) %}{% set n.a = n.a|tojson %}{% endfor %}",
    "operator chain": "{{ 1" + " + 1" * 2000 + " }}",
    "parentheses": "{{ " + "(" * 9999 + " }}",
    "brackets": "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "nested ifs": "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "nested fors": "{% for x in [1] %}" * 21 + "{% endfor %}" * 21,
}


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template may do does not depend on the machine's speed."""
    monkeypatch.setattr(meter.time, "thread_time", lambda: 0.0)


@pytest.fixture
def counting_clock(monkeypatch: pytest.MonkeyPatch, still_clock: None) -> None:
    """A clock that moves each time it is looked at: a template is stopped after a count of operations."""
    ticks = itertools.count()
    monkeypatch.setattr(meter.time, "thread_time", lambda: next(ticks) * 0.05)


@pytest.mark.usefixtures("counting_clock")
@pytest.mark.parametrize("name", SPENDERS)
def test_a_template_that_spends_without_end_is_stopped(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TextError):
            ChatTemplate(SPENDERS[name]).render(MESSAGES)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200 << 20


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
        "{{ '%(a)s' % {'a': 1} }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].clear() }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ 'a'.center(9) }}",
        "{{ 'a'|center(9) }}",
        "{{ lipsum() }}",
        "{{ cycler('a')() }}",
        "{{ range }}",
        "{{ self }}",
        "{{ (1).to_bytes(9) }}",
        "{{ messages[0].keys() - ['a'] }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as x %}",
        "{% from 'x' import x %}",
        "{% extends 'x' %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% autoescape true %}{{ '<' }}{% endautoescape %}",
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
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(TextError, match="chat template"):
        ChatTemplate(source).render(MESSAGES)


def test_the_templates_own_refusal_is_passed_on() -> None:
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
        ("{{ [3, 1]|sort }}{{ [1, 2]|sum }}{{ [1, 1]|unique }}{{ [2, 3]|max }}{{ {'b': 1, 'a': 2}|dictsort }}",
         "[1, 3]3[1]3[('a', 2), ('b', 1)]"),
        ("{{ [1, 2]|first }}{{ [1, 2]|last }}{{ 'ab'|reverse }}{{ '3'|int + 1 }}{{ x|default('d') }}", "12ba4d"),
        ("{{ 'a\nb'|indent(2) }}|{{ ' a '|trim }}|{{ 2.567|round(1) }}|{{ 'ab'|list }}", "a\n  b|a|2.6|['a', 'b']"),
        ("{{ '%s is %d%%' % ('a', 5) }}{{ '{} {0} {b} {{}}'.format('x', b='y') }}", "a is 5%x x y {}"),
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
