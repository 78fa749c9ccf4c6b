"""From a request to what the engine computes: the prompt's tokens, each choice's parameters, the rule of its output.

Typed control tokens are text, in messages and in raw prompts alike. Refused: prompts that are empty or longer than
the context, token ids outside the vocabulary, and parameters without meaning. Slow for a long prompt, so it runs
beside the event loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from earthshine.engine import Constraint, SamplingParams
from earthshine.errors import ContextError, UsageError
from earthshine.generation.request import GenerationRequest, Messages
from earthshine.text import CallForm, ChatTemplate, StopStrings, Tokenizer, call_form, leaves_thinking_open
from earthshine.text.grammar import Grammars, OutputRule
from earthshine.text.grammar_calls import ToolRule
from earthshine.text.history import repair_history


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A request as the engine takes it, and what reading its answer needs.

    `params`: its own, with max_tokens within the context; `fills_context`: that is all the context has room for.
    `regions`: the answer is a conversation's and may hold reasoning and calls; `thinking`: it begins within a thought;
    `tools`: those that were offered; `call_form`: how the model writes calls; `n_calls`: calls in the conversation so
    far. `prompt_text` comes before the answer.
    `noticed_stops`: they end the answer, though the engine goes on.
    """

    request: GenerationRequest
    tokens: Sequence[int]
    params: SamplingParams
    regions: bool
    thinking: bool
    tools: Sequence[ToolRule]
    call_form: CallForm | None
    n_calls: int
    prompt_text: str
    fills_context: bool
    noticed_stops: frozenset[int]
    constraint: Callable[[], Constraint | None]  # a new one for each choice


class Prompts:
    """Prepares requests for a model with these facts. Without a template only texts and token ids are completed.

    Safe to share between threads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        vocab_size: int,
        stop_tokens: Sequence[int],
        context_tokens: int,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._call_form = call_form(tokenizer, template)
        self._grammars = Grammars(tokenizer, vocab_size, stop_tokens, self._call_form)
        self._vocab_size, self._stop_tokens, self._context_tokens = vocab_size, tuple(stop_tokens), context_tokens

    def count(self, request: GenerationRequest) -> int:
        """How many tokens the prompt has. Raises TextError and UsageError."""
        return len(self._encoded(request)[0])

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Raises TextError, UsageError and ContextError."""
        params = request.params
        StopStrings(params.stop)
        self._require_ids([*params.stop_token_ids, *params.allowed_token_ids, *params.logit_bias])
        tokens, n_calls = self._encoded(request, self._context_tokens)
        room, asked = self._context_tokens - len(tokens), params.max_tokens
        if not tokens:
            raise UsageError("The prompt is empty; an answer needs at least one token to continue.")
        if room < 1:
            raise self._too_long(len(tokens))
        params = replace(params, max_tokens=room if asked is None else min(asked, room))
        noticed: frozenset[int] = frozenset()
        if request.echo and params.logprobs is not None and params.max_tokens == 1 and not params.ignore_eos:
            # Who scores a text asks for one token more and drops its score, so a stop token must have one as well.
            noticed = frozenset((*self._stop_tokens, *params.stop_token_ids))
            params = replace(params, ignore_eos=True)
        regions, tools = _is_conversation(request.prompt), [_tool_rule(tool) for tool in _offered(request)]
        thinking = regions and leaves_thinking_open(self._tokenizer, tokens)
        return Prepared(
            request=request,
            tokens=tokens,
            params=params,
            regions=regions,
            thinking=thinking,
            tools=tools,
            call_form=self._call_form,
            n_calls=n_calls,
            prompt_text=self._text(request.prompt) if request.echo else "",
            fills_context=asked is None or asked > room,
            noticed_stops=noticed,
            constraint=self._constraint(request, tools, tokens, thinking, n_calls),
        )

    def _constraint(
        self,
        request: GenerationRequest,
        tools: Sequence[ToolRule],
        tokens: Sequence[int],
        thinking: bool,
        n_calls: int,
    ) -> Callable[[], Constraint | None]:
        closed = tokens[-1] == self._tokenizer.special_id("</think>")
        rule = OutputRule(
            thinking=thinking,
            thought_tokens=request.thinking_tokens,
            may_think=_may_think(request) and not closed,
            format=None if request.format is None else request.format.kind,
            value=None if request.format is None else request.format.value,
            strict=request.format is not None and request.format.strict,
            tools=tools,
            choice=request.tool_choice.kind,
            name=request.tool_choice.name,
            parallel=request.parallel_tool_calls,
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

    def _require_ids(self, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise UsageError(f"Token ids lie between 0 and {self._vocab_size - 1} in this model.")

    def _text(self, prompt: Messages | str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(cast(list[int], prompt))

    def _encoded(self, request: GenerationRequest, limit: int | None = None) -> tuple[Sequence[int], int]:
        """The prompt's tokens, and how many calls the conversation holds; `limit` as Tokenizer.encode has it."""
        prompt = request.prompt
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, False, limit=limit), 0
        if _is_conversation(prompt):
            return self._conversation(request, cast(Messages, prompt), limit)
        ids = cast(list[int], prompt)
        self._require_ids(ids)
        return ids, 0

    def _conversation(self, request: GenerationRequest, messages: Messages, limit: int | None) -> tuple[list[int], int]:
        if self._template is None:
            raise UsageError("This model has no chat template, so it takes no messages; complete a text instead.")
        messages, n_calls = repair_history(messages)
        begun = messages[-1] if request.continue_final_message else None
        tokens = self._template.encode(
            self._tokenizer,
            messages[:-1] if request.continue_final_message else messages,
            tools=list(_offered(request)) or None,
            thinking=request.thinking,
            preserve_thinking=request.preserve_thinking,
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


def _may_think(request: GenerationRequest) -> bool:
    return _is_conversation(request.prompt) and not request.continue_final_message and request.thinking is not False


def _offered(request: GenerationRequest) -> Sequence[dict[str, Any]]:
    """Kimi's templates have no way to say that tools must rest, so tool_choice none leaves them out."""
    return () if request.tool_choice.kind == "none" else request.tools


def _tool_rule(tool: Mapping[str, Any]) -> ToolRule:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError("Each tool must be a function with a name.", param="tools")
    return ToolRule(function["name"], function.get("parameters"), bool(function.get("strict")))


def _is_conversation(prompt: Messages | str | list[int]) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
