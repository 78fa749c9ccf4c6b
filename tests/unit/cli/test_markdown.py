"""Markdown as it comes: whatever the pieces, the screen ends as if the reply had come at once, with all its words."""

import io
import re

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.cli import markdown, region
from earthshine.cli.markdown import MarkdownText
from earthshine.cli.region import Flow, Region, wrapped
from earthshine.cli.terminal import printable

CONTROL = re.compile(r"\x1b\[[0-9;]*m|(?:\x1b\[[0-9]+A)?\r\x1b\[J|\x1b\[\?2026[hl]")  # all that is ever sent
REPLY = """# A title

Here is **bold**, `code` and a [link](https://example.org/x), with List<String> and
a second line that is kept apart from the first one.

- first item, which is long enough for a second row on a narrow terminal
- second
  - nested

  with more
- third
1. one
2. two
   ```sh
   ls -l
   ```

```python
def f(x):
    return x + 1  # a comment

```

| name | value |
|---|---:|
| alpha | 1 |

> quoted

---
Done.
"""


class Screen(io.StringIO):
    """A terminal of this size, as rich and a person see it."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        super().__init__()
        self.size = (columns, rows)
        self._display = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.0001)
        self._stream = pyte.Stream(self._display)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        display = self._display
        above = ["".join(row[x].data for x in range(display.columns)) for row in display.history.top]
        return [line.rstrip() for line in "\n".join([*above, *display.display]).rstrip().split("\n")]


@pytest.fixture(autouse=True)
def _terminals(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(region, "size", lambda stream: stream.size)


def shown(text: str, step: int | None = None, columns: int = 80, rows: int = 24) -> Screen:
    screen = Screen(columns, rows)
    written = MarkdownText(screen)
    for start in range(0, len(text), step or max(len(text), 1)):
        written.push(text[start : start + (step or len(text))])
    written.finish()
    return screen


def test_each_kind_of_block_is_rendered():
    assert shown(REPLY, 1).lines == [
        "A title",
        "",
        "Here is bold, code and a link (https://example.org/x), with List<String> and",
        "a second line that is kept apart from the first one.",
        "",
        " • first item, which is long enough for a second row on a narrow terminal",
        " • second",
        "    • nested",
        "   with more",
        " • third",
        " 1 one",
        " 2 two",
        "",
        "    ```sh",
        "    ls -l",
        "    ```",
        "",
        "```python",
        "def f(x):",
        "    return x + 1  # a comment",
        "",
        "```",
        "",
        " name   value",
        " ────────────",
        " alpha      1",
        "",
        "▌ quoted",
        "",
        "-" * 79,
        "Done.",
    ]


@pytest.mark.parametrize("step", [1, 2, 7, 50])
@pytest.mark.parametrize("columns", [80, 20])
def test_the_pieces_do_not_matter(step, columns):
    assert shown(REPLY, step, columns, 60).lines == shown(REPLY, None, columns, 60).lines


def test_the_running_block_is_seen_as_it_is_written():
    screen = Screen()
    written = MarkdownText(screen)
    written.push("One **bo")
    assert screen.lines == ["One **bo"]
    written.push("ld** word\n\nThe next")
    assert screen.lines == ["One bold word", "", "The next"]
    written.push("```")
    written.push("\n\n```py\nx = 1\ny =")
    assert screen.lines == ["One bold word", "", "The next```", "", "```py", "x = 1", "y ="]
    assert re.search(r"\x1b\[[0-9;]+m1\x1b", screen.getvalue()), "a whole line of code is highlighted"


def test_only_a_word_that_moves_down_a_row_is_written_twice():
    screen = Screen(37)
    flow = Flow(Region(screen))
    text = "many short words that are wrapped into several rows of a terminal"
    for character in text:
        flow.push(character)
    flow.finish()
    assert screen.lines == ["many short words that are wrapped", "into several rows of a terminal"]
    letters = CONTROL.sub("", screen.getvalue()).replace(" ", "").replace("\n", "")
    assert len(letters) - len(text.replace(" ", "")) <= len("many short words that are wrapped in".replace(" ", ""))


def test_a_block_taller_than_the_screen_stays_as_it_was_written_and_whole():
    text = "A **long** paragraph. " + " ".join(f"word{number}" for number in range(200)) + "\n\nThen **bold**."
    screen = shown(text, 3, 30, 8)
    assert " ".join(screen.lines).split() == text.replace("Then **bold**", "Then bold").split()


def test_a_list_after_a_tall_block_is_not_shown_twice():
    text = "word " * 100 + "\n- item **one**\n2019 was a year\n\n- item two\n"
    assert " ".join(shown(text, 1, 30, 6).lines).split().count("item") == 2


def test_a_block_whose_terminal_changes_its_width_loses_nothing():
    screen = Screen(60)
    written = MarkdownText(screen)
    written.push("A **paragraph** that is under way ")
    screen.size = (30, 24)
    written.push("when the terminal becomes narrower\n\nand **one** more")
    written.finish()
    whole = "A **paragraph** that is under way when the terminal becomes narrower and one more"
    assert " ".join(screen.lines).split() == whole.split()


def test_a_table_that_is_too_wide_is_left_as_written():
    row = "| " + " | ".join(f"column{number}" for number in range(9)) + " |"
    text = f"{row}\n|{'---|' * 9}\n{row}\n"
    assert "".join("".join(shown(text, 5, 24, 60).lines).split()) == "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| 1 | 2 | 3 lost |",
        "> | a | b |\n> |---|---|\n> | 1 | 2 | 日 |",
        "- item\n\n  | a |\n  |---|\n  | 1 | 2 |",
        'A [link](https://example.org "and its title").',
    ],
)
def test_a_block_whose_rendering_would_lose_a_word_is_left_as_written(text):
    assert "\n".join(shown(text, 3).lines) == text


def test_a_variable_with_another_width_loses_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = f"```\n{'word ' * 10}end\n```\n\n{'word ' * 10}end"
    assert shown(text, 5).lines == text.split("\n")


def test_little_is_highlighted_for_each_line_of_code(monkeypatch):
    highlighted = []
    whole = markdown.Syntax.highlight
    monkeypatch.setattr(
        markdown.Syntax, "highlight", lambda self, code: (highlighted.append(code), whole(self, code))[1]
    )
    text = "```py\n" + "".join(f"x{number} = {'9' * length}\n" for number in range(50) for length in (1, 110)) + "```"
    assert shown(text, 50, columns=130).lines == text.split("\n")
    assert len(highlighted) == 100
    assert max(code.count("\n") for code in highlighted) < 30
    assert max(map(len, highlighted)) < 2100


def test_code_in_an_unknown_language_and_code_that_does_not_end_are_shown():
    assert shown("```klingon\nqapla'\n```\n~~~\nopen", 2).lines == ["```klingon", "qapla'", "```", "~~~", "open"]


def test_a_renderer_that_fails_costs_the_rendering_alone(monkeypatch):
    def fail(source):
        raise ValueError(source)

    monkeypatch.setattr(markdown, "_Markdown", fail)
    assert shown("A **bold** word").lines == ["A **bold** word"]


PIECES = st.lists(
    st.sampled_from(
        [
            "word", "longerword", " ", "\n", "\n\n", "# ", "- ", "  - ", "1. ", "12) ", "> ", "```", "```py\n", "~~~\n",
            "**", "*", "_", "`", "|", "\n|---|---|\n", "---\n", "===\n", "<b>", "</div>\n", "<!-- x", "&amp;", "[a](b)",
            "[a]: b\n", "![i](j)", "\\", "    ", "\t", "日本", "…", "[red]", ":smile:", "<https://x.y>", "x" * 90,
        ]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=150)
@given(PIECES, st.integers(1, 9), st.sampled_from([(80, 24), (20, 6), (10, 2)]))
def test_no_letter_is_lost_and_nothing_but_styles_and_moves_is_sent(text, step, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(region, "size", lambda stream: stream.size)
        screen = shown(text, step, *size)
    assert "\x1b" not in CONTROL.sub("", screen.getvalue())
    got, asked = ("".join(re.findall(r"[a-z日本]", part)) for part in ("".join(screen.lines), text))
    if size[1] > 24 - 1 and len(screen.lines) < size[1]:  # nothing had left the screen before it was rendered
        assert got == asked
    assert len(got) >= len(asked)


@settings(max_examples=150)
@given(st.text(max_size=200), st.integers(1, 5))
def test_any_text_is_shown_without_its_control_characters(text, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(region, "size", lambda stream: stream.size)
        sent = shown(printable(text), step, 20, 6).getvalue()
    assert printable(CONTROL.sub("", sent)) == CONTROL.sub("", sent)


@given(st.text(alphabet="ab é日\t\n", max_size=80), st.integers(10, 30))
def test_wrapped_rows_fit_and_hold_every_word(text, columns):
    rows = wrapped(text, columns)
    assert "".join("".join(rows).split()) == "".join(text.split())
    assert all(sum(2 if character == "日" else 1 for character in row.rstrip()) <= columns for row in rows)
