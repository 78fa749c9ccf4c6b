"""Keys that the prompt of `earthshine chat` has no use for, that come late, or that are too many, do no harm."""

import pytest

from earthshine.cli.text_editor import MOST_CHARACTERS

from .pseudo_terminal import END, MAIN, START

# What runs as a question's line ends, after the event loop's last look at signals.
INTERRUPTED = """
import asyncio
from prompt_toolkit.application import Application
whole = Application.cancel_and_wait_for_background_tasks
count = 0
async def interrupted(self):
    global count
    await whole(self)
    count += 1
    if count == 1:
        asyncio.get_running_loop().call_soon(self.key_processor.send_sigint)
Application.cancel_and_wait_for_background_tasks = interrupted
"""
FAULTY = """
from prompt_toolkit.buffer import Buffer
def fails(self, *given, **more):
    raise ValueError("a fault")
Buffer.transform_region = Buffer.swap_characters_before_cursor = fails
"""


@pytest.mark.parametrize("typed", ["\x1b[31m", "\x1b[31mred\x1b[0m", "\x1b[1;2M", "\x1b[<0;1;1M", "\x1b[M!!!"])
def test_an_escape_sequence_without_paste_marks_leaves_the_question(start, tmp_path, typed):
    chat = start("--max-tokens", "2")
    chat.until_asked()
    chat.type(f"abc {typed} def\r")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: abc ")
    assert " def" in chat.until("assistant: ")
    chat.type("/bye\r")
    assert chat.end() == 0
    assert "Unhandled" not in chat.shown
    assert "WARNING" not in chat.shown


def test_a_fault_while_a_line_is_edited_is_one_sentence_and_leaves_the_line(start):
    chat = start("--max-tokens", "2", code=FAULTY + MAIN)
    chat.until_asked()
    chat.type("hello\x14")
    chat.until("A key was left out: a fault.")
    chat.type(" you\r")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: hello you")
    assert "Press ENTER" not in chat.shown
    assert "Traceback" not in chat.shown


def test_an_interrupt_right_after_enter_stops_that_question(start):
    chat = start("--max-tokens", "2", code=INTERRUPTED + MAIN)
    chat.until_asked()
    chat.type("hello\r")
    chat.until_asked()
    chat.type("/show messages\r")
    chat.until("There are no messages")
    assert "Unhandled" not in chat.shown
    assert "Application" not in chat.shown


def test_a_paste_beyond_what_can_be_edited_is_refused_and_leaves_the_message(start):
    chat = start("--max-tokens", "2")
    chat.until_asked()
    chat.type("half a")
    chat.type(START)
    for _ in range(MOST_CHARACTERS // 4096):
        chat.type("x" * 4096)
        chat.read()
    chat.type(END)
    chat.until(f"The message would have over {MOST_CHARACTERS} characters")
    chat.type(" line\r")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: half a line")
