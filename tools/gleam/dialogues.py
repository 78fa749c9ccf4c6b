"""Token sequences in Kimi's chat format: questions, answers, and where the loss applies.

A prompt ends in an open `<think>`; the reply closes it at once, gives the command and ends the message, so the
model answers alike with thinking on and off.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from gleam.tldr import SMALL_TALK, Pair, ask
from torch import Tensor

from earthshine.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Dialogue:
    tokens: list[int]
    learned: list[bool]  # the token is part of a reply, so the loss applies to predicting it


class Scribe:
    """Writes dialogues with the vocabulary's control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        names = ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<think>", "</think>")
        self._user, self._assistant, self._middle, self._end, self._think, self._unthink = (
            tokenizer.special_id(name) for name in names
        )

    def prompt(self, question: str) -> list[int]:
        """Up to and including the open `<think>`."""
        asked = self._encode(question, allow_special=False)
        user, assistant = self._encode("user", allow_special=False), self._encode("assistant", allow_special=False)
        head = [self._user, *user, self._middle, *asked, self._end]
        return [*head, self._assistant, *assistant, self._middle, self._think]

    def reply(self, answer: str) -> list[int]:
        return [self._unthink, *self._encode(answer, allow_special=False), self._end]

    def dialogue(self, turns: list[tuple[str, str]]) -> Dialogue:
        tokens: list[int] = []
        learned: list[bool] = []
        for question, answer in turns:
            prompt, reply = self.prompt(question), self.reply(answer)
            tokens += prompt + reply
            learned += [False] * len(prompt) + [True] * len(reply)
        return Dialogue(tokens, learned)


def epoch(pairs: list[Pair], everyday: list[tuple[str, str]], scribe: Scribe, rng: random.Random) -> list[Dialogue]:
    """Every pair once, most alone and some as later messages of one conversation; everyday tasks and small talk
    often."""
    turns = [(ask(pair, rng), pair.command) for pair in pairs] + everyday * 2
    rng.shuffle(turns)
    alone = [*SMALL_TALK.items(), *everyday] * 4
    dialogues = [scribe.dialogue([turn]) for turn in alone]
    position = 0
    while position < len(turns):
        length = rng.choices((1, 2, 3), (0.85, 0.11, 0.04))[0]
        dialogues.append(scribe.dialogue(turns[position : position + length]))
        position += length
    return dialogues


def batches(dialogues: list[Dialogue], tokens_a_batch: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Dialogues of like length together: tokens int64 and learned bool, both [rows, length], padded by 0."""
    noisy = sorted(dialogues, key=lambda one: len(one.tokens) + rng.random())
    groups: list[list[Dialogue]] = [[]]
    for one in noisy:
        if groups[-1] and (len(groups[-1]) + 1) * len(one.tokens) > tokens_a_batch:
            groups.append([])
        groups[-1].append(one)
    rng.shuffle(groups)
    for group in groups:
        length = max(len(one.tokens) for one in group)
        tokens, learned = torch.zeros(len(group), length, dtype=torch.long), torch.zeros(len(group), length).bool()
        for row, one in enumerate(group):
            tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
            learned[row, : len(one.tokens)] = torch.tensor(one.learned)
        yield tokens, learned
