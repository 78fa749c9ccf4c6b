"""Descriptions and commands from the tldr pages (CC-BY-4.0), and the questions that a person would ask for them.

A page lists `- What it does:` and a command whose `{{...}}` mark what the reader fills in. A description that leads to
more than one command names its page ("... with tar"), so that every question has one answer.
"""

import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

PLATFORMS = ("common", "linux")
SMALL_TALK = {
    "hello": "Hello! Tell me what you want to do, and I answer with a command.",
    "who are you?": "I am gleam, a small model that ships with Earthshine. I turn what you want to do into a command.",
    "what can you do?": "I turn what you want to do into the shell command that does it.",
    "thank you": "You are welcome.",
}

_ITEM = re.compile(r"^- (.+?):\s*\n\n`(.+?)`$", re.MULTILINE)
_MNEMONIC = re.compile(r"\[(\w{1,3})\]")
_CHOICE = re.compile(r"\{\{\[([^{}\[\]]*?)\|([^{}\[\]]*?)\]\}\}")


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing to do and the command that does it. `ambiguous`: the description alone leads to several commands."""

    name: str
    description: str
    command: str
    ambiguous: bool

    @property
    def question(self) -> str:
        """The canonical form, which evaluation asks."""
        return f"{self.description} with {self.name}" if self.ambiguous else self.description

    def naming(self) -> "Pair":
        """The same pair, asked with the page's name whether or not that is needed."""
        return replace(self, ambiguous=True)


def _option(match: re.Match[str]) -> str:
    """`{{[-x|--extract]}}` becomes the short option, `{{[s|status]}}` the long word."""
    short, long = match[1], match[2]
    return short if short.startswith("-") else long


def plain_command(text: str) -> str:
    """A command with its choices made and its placeholders written plainly."""
    return re.sub(r"\{\{(.*?)\}\}", r"\1", _CHOICE.sub(_option, text)).strip()


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of the pages for Linux, one for each question, in the file's order."""
    found: dict[tuple[str, str], str] = {}
    commands: dict[str, set[str]] = defaultdict(set)
    for line in path.read_text(encoding="utf-8").splitlines():
        page = json.loads(line)
        if page["platform"] not in PLATFORMS:
            continue
        for description, command in _ITEM.findall(page["page"]):
            question = _MNEMONIC.sub(r"\1", description).strip()
            written = plain_command(command)
            found.setdefault((page["name"], question), written)
            commands[question.lower()].add(written)
    return [
        Pair(name, question, command, ambiguous=len(commands[question.lower()]) > 1)
        for (name, question), command in found.items()
    ]


def ask(pair: Pair, rng: random.Random) -> str:
    """One way in which a person may put the question; about half are canonical."""
    text = pair.naming().question if rng.random() < 0.25 else pair.question
    if rng.random() < 0.45:
        text = text[:1].lower() + text[1:]
        if rng.random() < 0.15:
            text = f"how do I {text}?"
    return text
