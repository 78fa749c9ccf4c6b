"""Requests to TextGenerator that are refused, cancelled or fail."""

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import pytest

from earthshine.engine import Failed, Finished
from earthshine.errors import ContextError, EarthshineError, OverloadError, TextError, UsageError
from earthshine.server import generator as generator_module
from earthshine.server.generator import TextGenerator

from ..fake_engine import HOLD
from .conftest import END, HELLO, VOCAB, ended, joined, wanted


class TestRefusals:
    def test_beyond_the_context(self, asker):
        n_prompt = len(asker.template.encode(asker.tokenizer, HELLO))
        with pytest.raises(
            ContextError, match=f"context length is {n_prompt} tokens; the prompt has {n_prompt}"
        ) as same:
            asker(wanted(HELLO), context_tokens=n_prompt)
        assert same.value.figures == f"{n_prompt} of {n_prompt} tokens"
        with pytest.raises(ContextError) as longer:
            asker(wanted(HELLO), context_tokens=n_prompt - 1)
        assert longer.value.figures == f"more than {n_prompt - 1} tokens"
        asker.says([END])
        assert ended(asker(wanted(HELLO), context_tokens=n_prompt + 1)).completion_tokens == 1

    @pytest.mark.parametrize(
        "sampling", [{"temperature": -1}, {"max_tokens": 0}, {"stop_token_ids": (VOCAB,)}, {"logit_bias": {VOCAB: 1.0}}]
    )
    def test_sampling_without_meaning(self, asker, sampling):
        with pytest.raises(UsageError):
            asker(wanted(HELLO, **sampling))
        assert asker.engine.requests == []

    def test_messages_without_a_template(self, asker):
        asker.template = None
        with pytest.raises(UsageError, match="no chat template"):
            asker(wanted(HELLO))

    def test_malformed_messages(self, asker):
        with pytest.raises(TextError, match="tool_call_id"):
            asker(wanted([{"role": "tool", "content": "x"}]))

    def test_a_full_queue_cancels_what_was_asked_already(self, asker):
        def answer(request):
            if len(engine.requests) == 2:
                raise OverloadError("Too many wait.", 3)
            return [HOLD]

        engine = asker.says()
        engine._answers = answer
        with pytest.raises(OverloadError):
            asker(wanted(HELLO, n=4))
        assert engine.idle()
        assert len(engine.cancelled) == 2

    def test_a_failure_ends_all_choices(self, asker):
        error = EarthshineError("The weights are damaged.")
        engine = asker.says([HOLD], [*asker.ids("</think>a"), Failed(error)])
        with pytest.raises(EarthshineError) as caught:
            asker(wanted(HELLO, n=2))
        assert caught.value is error
        assert engine.idle()
        assert len(engine.cancelled) == 1

    def test_a_server_that_ends(self, asker):
        asker.says([*asker.ids("</think>a"), Finished("cancelled")])
        with pytest.raises(OverloadError, match="was closed before"):
            asker(wanted(HELLO))


class TestCancellation:
    def test_the_client_leaves_at_any_piece(self, asker):
        for n_pieces in range(1, 4):  # an Started, and a Delta for each choice
            engine = asker.says([*asker.ids("one</think>two"), HOLD], [*asker.ids("three"), HOLD])

            async def work(replies: TextGenerator, n: int = n_pieces) -> None:
                async with aclosing(replies.answer([wanted(HELLO, n=2)], "")) as pieces:
                    for _ in range(n):
                        await anext(pieces)

            asker.with_replies(lambda replies: asyncio.wait_for(work(replies), 5))
            assert engine.idle()
            assert len(engine.cancelled) == 2

    @pytest.mark.parametrize("held", [[HOLD], [100, HOLD]])
    def test_the_task_is_cancelled_while_it_waits(self, asker, held):
        engine = asker.says(held)

        async def work(replies: TextGenerator) -> None:
            async def read() -> None:
                async for _ in replies.answer([wanted(HELLO)], ""):
                    pass

            task = asyncio.ensure_future(read())
            while not engine.requests:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asker.with_replies(work)
        assert engine.idle()
        assert engine.cancelled == engine.requests

    def test_the_task_is_cancelled_while_its_prompt_is_made(self, asker):
        entered, go_on = threading.Event(), threading.Event()

        async def work(replies: TextGenerator) -> None:
            choices = replies._prompts.choices

            def slow(*arguments: Any, **options: Any) -> Any:
                entered.set()
                go_on.wait(300)
                return choices(*arguments, **options)

            replies._prompts.choices = slow
            task = asyncio.ensure_future(anext(replies.answer([wanted(HELLO)], "")))
            while not (entered.is_set() or task.done()):
                await asyncio.sleep(0.001)  # the loop is free meanwhile
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()

        asker.with_replies(work)
        assert asker.engine.requests == []

    def test_a_slow_reader_gets_many_tokens_at_once(self, asker):
        engine = asker.says([*asker.ids("</think>"), *[100] * 40, END])

        async def work(replies: TextGenerator) -> list[Any]:
            pieces = []
            async for piece in replies.answer([wanted(HELLO)], ""):
                if not pieces:
                    await asyncio.to_thread(engine.idle)
                pieces.append(piece)
            return pieces

        pieces = asker.with_replies(work)
        assert joined(pieces) == asker.tokenizer.decode([100] * 40)
        assert len(pieces) <= 5

    def test_other_events_run_between_batches(self, asker, monkeypatch):
        monkeypatch.setattr(generator_module, "_BATCH", 4)
        engine = asker.says([*asker.ids("</think>"), *[100] * 400, END])

        async def work(replies: TextGenerator) -> int:
            iterations = 0

            async def other() -> None:
                nonlocal iterations
                while True:
                    iterations += 1
                    await asyncio.sleep(0)

            pieces = replies.answer([wanted(HELLO)], "")
            await anext(pieces)
            await asyncio.to_thread(engine.idle)
            task = asyncio.ensure_future(other())
            async for _ in pieces:
                pass
            task.cancel()
            return iterations

        assert asker.with_replies(work) >= 90
