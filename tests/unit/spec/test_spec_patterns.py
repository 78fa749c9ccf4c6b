"""The matcher of untrusted expressions agrees with Python's `re` wherever both can answer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.spec.families.patterns import MAX_WORK, PatternError, Patterns, parse


def _matches(pattern: str, name: str) -> bool:
    patterns = Patterns([parse(pattern)])
    state = patterns.start
    for piece in re.findall(r"[^.]*\.|[^.]+", name):
        state = patterns.after(state, piece)
    return patterns.matches(state)


_ATOMS = st.sampled_from(["a", "b", r"\.", ".", r"\d", r"\w", "[ab]", "[^a.]", "[a-c0]", r"[\d_]", "$"])
_PATTERNS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(_PATTERNS, st.text("ab.0_z", max_size=8))
def test_it_agrees_with_python(pattern: str, name: str) -> None:
    assert _matches(pattern, name) == (re.match(pattern, name) is not None)


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # of Python's re, for "[[" and the like
@settings(max_examples=300, deadline=None)
@given(st.text("ab()[]{}|*+?.^$\\-,0", max_size=12), st.text("ab0-", max_size=6))
def test_arbitrary_text_is_read_as_python_reads_it_or_refused(pattern: str, name: str) -> None:
    try:
        found = _matches(pattern, name)
    except PatternError:
        return
    try:
        right = re.match(pattern, name) is not None
    except re.error:  # a count of nothing, such as `^*`; nothing to compare with
        return
    assert found == right


def test_the_work_of_many_names_is_bounded() -> None:
    patterns = Patterns([parse("(a|b)*a(a|b){12}c")])

    def read_many() -> None:
        for number in range(MAX_WORK):
            patterns.after(patterns.start, f"{number:b}".replace("0", "a").replace("1", "b"))

    with pytest.raises(PatternError, match="too much work"):
        read_many()


@pytest.mark.parametrize("first", ["a", "aend of name"])
def test_end_of_a_name_is_not_text(first: str) -> None:
    patterns = Patterns([parse("a$")])
    for name in (first, "a", "aend of name"):
        assert patterns.matches(patterns.after(patterns.start, name)) == (name == "a")
