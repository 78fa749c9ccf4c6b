"""From a GenerationRequest to the engine's: the prompt's tokens, each choice's parameters, its answer's grammar.

Control tokens that are typed in messages or raw prompts are text. Refused: prompts that are empty or longer than the
context, token ids outside the vocabulary, and formats that can't be compiled. Slow for a long prompt, so the server
runs it on a thread of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from earthshine.engine import Request, SamplingParams
from earthshine.errors import ContextError, UsageError
from earthshine.generation.output import Choice
from earthshine.generation.request import Format, GenerationRequest, Messages
from earthshine.text import ChatTemplate, Tokenizer, call_form, leaves_thinking_open
from earthshine.text.grammar import Grammar, Grammars, OutputRule
from earthshine.text.grammar_calls import ToolRule
from earthshine.text.history import repair_history


class Prompts:
    """Prepares requests for one model. Without a template only texts and token ids can be completed.

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
        """The number of tokens in the prompt. Raises TextError and UsageError."""
        return len(self._encoded(request)[0])

    def check(self, form: Format) -> None:
        """Raises TextError for a format that replies can't be held to, such as a schema that does not compile."""
        self._grammars.compile(OutputRule(format=form.kind, value=form.value, strict=form.strict))

    def choices(self, request: GenerationRequest, tenant: str = "", *, repeat_thought: bool = False) -> list[Choice]:
        """One for each of `params.n`, with the engine's Request; `repeat_thought` as Choice.

        Raises TextError, UsageError and ContextError.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            self._require_ids(list(getattr(request.params, name)), name)
        tokens, n_calls = self._encoded(request, self._context_tokens)
        params = self._within_context(request.params, len(tokens))
        noticed: frozenset[int] = frozenset()
        if request.echo and params.logprobs is not None and params.max_tokens == 1 and not params.ignore_eos:
            # Clients that score a text request one token more and ignore its score, so a stop token needs one too.
            noticed = frozenset((*self._stop_tokens, *params.stop_token_ids))
            params = replace(params, ignore_eos=True)
        thinking = request.is_conversation and leaves_thinking_open(self._tokenizer, tokens)
        tools = [_tool_rule(tool) for tool in request.offered_tools]
        grammar = self._grammar(request, tools, tokens, thinking, n_calls)
        prompt_text = self._text(request.prompt) if request.echo else ""
        found = []
        for index in range(params.n):
            own = replace(params, seed=params.choice_seed(index))
            constraint = None if grammar is None else grammar.start()
            choice = Choice(
                request,
                Request(tokens, own, tenant, request.priority, constraint),
                self._tokenizer,
                call_form=self._call_form,
                tools=tools,
                thinking=thinking,
                n_calls=n_calls,
                prompt_text=prompt_text,
                noticed_stops=noticed,
                repeat_thought=repeat_thought,
            )
            found.append(choice)
        return found

    def _within_context(self, params: SamplingParams, n_prompt: int) -> SamplingParams:
        """The parameters with max_tokens limited to the rest of the context."""
        if not n_prompt:
            raise UsageError("The prompt is empty; an answer needs at least one token to continue.")
        room = self._context_tokens - n_prompt
        if room < 1:
            whole = n_prompt <= self._context_tokens  # otherwise encoding stopped there
            has = str(n_prompt) if whole else "more"
            raise ContextError(
                f"This model's maximum context length is {self._context_tokens} tokens; the prompt has {has}, and a "
                "reply needs at least one more. Shorten it.",
                f"{has} {'of' if whole else 'than'} {self._context_tokens} tokens",
            )
        return replace(params, max_tokens=room if params.max_tokens is None else min(params.max_tokens, room))

    def _grammar(
        self,
        request: GenerationRequest,
        tools: Sequence[ToolRule],
        tokens: Sequence[int],
        thinking: bool,
        n_calls: int,
    ) -> Grammar | None:
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
        return self._grammars.compile(rule)

    def _require_ids(self, tokens: Sequence[int], param: str) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise UsageError(f"Token ids must be between 0 and {self._vocab_size - 1} in this model.", param)

    def _text(self, prompt: Messages | str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(cast(list[int], prompt))

    def _encoded(self, request: GenerationRequest, limit: int | None = None) -> tuple[Sequence[int], int]:
        """The prompt's tokens, and the number of calls in the conversation; `limit` as Tokenizer.encode has it."""
        prompt = request.prompt
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, False, limit=limit), 0
        if request.is_conversation:
            return self._conversation(request, cast(Messages, prompt), limit)
        ids = cast(list[int], prompt)
        self._require_ids(ids, "prompt")
        return ids, 0

    def _conversation(self, request: GenerationRequest, messages: Messages, limit: int | None) -> tuple[list[int], int]:
        if self._template is None:
            raise UsageError("This model has no chat template, so it takes no messages; complete a text instead.")
        messages, n_calls = repair_history(messages)
        begun = messages[-1] if request.continue_final_message else None
        tokens = self._template.encode(
            self._tokenizer,
            messages[:-1] if request.continue_final_message else messages,
            tools=list(request.offered_tools) or None,
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
    return request.is_conversation and not request.continue_final_message and request.thinking is not False


def _tool_rule(tool: Mapping[str, Any]) -> ToolRule:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError("Each tool must be a function with a name.", param="tools")
    return ToolRule(function["name"], function.get("parameters"), bool(function.get("strict")))
