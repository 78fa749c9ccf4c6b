"""From a turn to what the engine computes: the prompt's tokens, each choice's parameters, the rule of its output.

Typed control tokens are text, in messages and in raw prompts alike. Refused: prompts that are empty or longer than
the context, token ids outside the vocabulary, and parameters without meaning. Slow for a long prompt, so it runs
beside the event loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from earthshine.engine import Constraint, SamplingParams
from earthshine.errors import ContextError, UsageError
from earthshine.generation.request import Messages, Turn
from earthshine.text import ChatTemplate, StopStrings, Tokenizer, leaves_thinking_open
from earthshine.text.grammar import Grammars, OutputRule, ToolRule
from earthshine.text.history import repair_history

_INT64 = 1 << 63


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A turn, ready for the engine. `params` has one entry a choice. `regions`: the reply is a conversation's and may
    hold reasoning and calls; `thinking`: it begins within a thought; `calls`: tools were offered; `n_calls`: calls in
    the conversation so far. `prompt_text` is told first, and `prompt_only`: nothing else is. `fills_context`:
    max_tokens is what the context has room for. `noticed_stops`: they end the reply, though the engine goes on."""

    turn: Turn
    tokens: Sequence[int]
    params: tuple[SamplingParams, ...]
    regions: bool
    thinking: bool
    calls: bool
    n_calls: int
    prompt_text: str
    prompt_only: bool
    fills_context: bool
    noticed_stops: frozenset[int]
    constraint: Callable[[], Constraint | None]  # a new one for each choice


class Prompts:
    """`defaults` are the model's own sampling parameters; `vocab_size`, `stop_tokens` and `context_tokens` its facts.
    Without a template only raw prompts are answered. Safe to share between threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        defaults: Mapping[str, float],
        vocab_size: int,
        stop_tokens: Sequence[int],
        context_tokens: int,
    ) -> None:
        self._tokenizer, self._template, self._defaults = tokenizer, template, dict(defaults)
        self._grammars = Grammars(tokenizer, vocab_size, stop_tokens)
        self._vocab_size, self._stop_tokens, self._context_tokens = vocab_size, tuple(stop_tokens), context_tokens

    def count(self, turn: Turn) -> int:
        """How many tokens the prompt has. Raises TextError and UsageError."""
        return len(self._encoded(turn)[0])

    def prepare(self, turn: Turn) -> Prepared:
        """Raises TextError, UsageError and ContextError."""
        StopStrings(turn.stop)
        tokens, n_calls = self._encoded(turn, self._context_tokens)
        room = self._context_tokens - len(tokens)
        if not tokens:
            raise UsageError("The prompt is empty; a reply needs at least one token to go on from.")
        if room < 1:
            raise self._too_long(len(tokens))
        asked = turn.sampling.get("max_tokens")
        prompt_only = turn.echo and asked == 0
        params = self._params(turn, 1 if prompt_only else room if asked is None else min(asked, room))
        noticed: frozenset[int] = frozenset()
        if turn.echo and turn.logprobs is not None and params.max_tokens == 1 and not params.ignore_stop:
            # Who scores a text asks for one token more and drops its score, so a stop token must have one as well.
            noticed = frozenset((*self._stop_tokens, *params.stop_tokens))
            params = replace(params, ignore_stop=True)
        regions = _is_conversation(turn.prompt)
        thinking = regions and leaves_thinking_open(self._tokenizer, tokens)
        return Prepared(
            turn=turn,
            tokens=tokens,
            params=tuple(replace(params, seed=_seed(params.seed, number)) for number in range(turn.n)),
            regions=regions,
            thinking=thinking,
            calls=bool(_offered(turn)),
            n_calls=n_calls,
            prompt_text=self._text(turn.prompt) if turn.echo else "",
            prompt_only=prompt_only,
            fills_context=asked is None or asked > room,
            noticed_stops=noticed,
            constraint=self._constraint(turn, tokens, thinking, n_calls),
        )

    def _constraint(
        self, turn: Turn, tokens: Sequence[int], thinking: bool, n_calls: int
    ) -> Callable[[], Constraint | None]:
        closed = tokens[-1] == self._tokenizer.special_id("</think>")
        rule = OutputRule(
            thinking=thinking,
            thought_tokens=turn.thought_tokens,
            may_think=_is_conversation(turn.prompt) and not closed and not turn.prefill and turn.thinking is not False,
            format=None if turn.format is None else turn.format.kind,
            value=None if turn.format is None else turn.format.value,
            strict=turn.format is not None and turn.format.strict,
            tools=[_tool_rule(tool) for tool in _offered(turn)],
            choice=turn.tool_choice.kind,
            name=turn.tool_choice.name,
            parallel=turn.parallel_calls,
            first_index=n_calls,
        )
        grammar = self._grammars.compile(rule)
        return (lambda: None) if grammar is None else grammar.start

    def _too_long(self, n_tokens: int) -> ContextError:
        has = str(n_tokens) if n_tokens <= self._context_tokens else "more"  # counting stopped there
        return ContextError(
            f"This model's maximum context length is {self._context_tokens} tokens; the prompt has {has}, and a "
            "reply needs at least one more. Shorten it."
        )

    def _params(self, turn: Turn, max_tokens: int) -> SamplingParams:
        given = {**self._defaults, **turn.sampling, "logprobs": turn.logprobs, "max_tokens": max_tokens}
        params = SamplingParams(**given)
        self._require_ids([*params.stop_tokens, *(token for token, _ in params.logit_bias)])
        return params

    def _require_ids(self, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise UsageError(f"Token ids lie between 0 and {self._vocab_size - 1} in this model.")

    def _text(self, prompt: Messages | str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(cast(list[int], prompt))

    def _encoded(self, turn: Turn, limit: int | None = None) -> tuple[Sequence[int], int]:
        """The prompt's tokens, and how many calls the conversation holds; `limit` as Tokenizer.encode has it."""
        prompt = turn.prompt
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, False, limit=limit), 0
        if _is_conversation(prompt):
            return self._conversation(turn, cast(Messages, prompt), limit)
        ids = cast(list[int], prompt)
        self._require_ids(ids)
        return ids, 0

    def _conversation(self, turn: Turn, messages: Messages, limit: int | None) -> tuple[list[int], int]:
        if self._template is None:
            raise UsageError("This model has no chat template, so it takes no messages; complete a text instead.")
        messages, n_calls = repair_history(messages)
        begun = messages[-1] if turn.prefill else None
        tokens = self._template.encode(
            self._tokenizer,
            messages[:-1] if turn.prefill else messages,
            tools=list(_offered(turn)) or None,
            thinking=turn.thinking,
            preserve_thinking=turn.preserve_thinking,
            limit=limit,
        )
        return tokens + self._begun(tokens, begun, limit) if begun is not None else tokens, n_calls

    def _begun(self, tokens: Sequence[int], message: Mapping[str, Any], limit: int | None) -> list[int]:
        """What the assistant's own last message adds to a prompt that asks for a new one."""
        given = message.get("content") or ""
        parts = [part.get("text") for part in given if isinstance(part, dict)] if isinstance(given, list) else [given]
        texts = [part for part in parts if isinstance(part, str)]
        if message.get("role") != "assistant" or message.get("tool_calls") or len(texts) < len(parts):
            raise UsageError("Only a last message that is the assistant's text, without tool calls, can be continued.")
        begun = self._tokenizer.encode("".join(texts), False, limit=limit)
        close = self._tokenizer.special_id("</think>")
        if close is None or not leaves_thinking_open(self._tokenizer, tokens):
            return begun
        thought = self._tokenizer.encode(message.get("reasoning_content") or "", False, limit=limit)
        return [*thought, close, *begun] if begun else thought


def _offered(turn: Turn) -> Sequence[dict[str, Any]]:
    """Kimi's templates have no way to say that tools must rest, so tool_choice none leaves them out."""
    return () if turn.tool_choice.kind == "none" else turn.tools


def _tool_rule(tool: Mapping[str, Any]) -> ToolRule:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError("Each tool must be a function with a name.", param="tools")
    return ToolRule(function["name"], function.get("parameters"), bool(function.get("strict")))


def _is_conversation(prompt: Messages | str | list[int]) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _seed(seed: int | None, number: int) -> int | None:
    """Each choice has a seed of its own, within 64 bits."""
    return None if seed is None else (seed + number + _INT64) % (2 * _INT64) - _INT64
