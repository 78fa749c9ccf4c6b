"""`LLM`: a model in this process, for lists of prompts. It runs the server's engine, so prompts share its batches.

Invalid parameters and prompts are refused before anything is computed. The first failure of any prompt is raised, and
whatever else the call asked for is cancelled.
"""

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypedDict, Unpack

from earthshine.engine import Engine, EngineOptions, LoadedModel, ReplyEvent, SamplingParams, load_model
from earthshine.engine import sampling_defaults as default_sampling_params
from earthshine.errors import UsageError
from earthshine.generation.prompts import Prepared, Prompts
from earthshine.generation.request import GenerationRequest
from earthshine.generation.submission import Submission
from earthshine.hub import find_readable
from earthshine.llm.inputs import (
    Params,
    flag_of,
    format_of,
    is_one_prompt,
    params_of,
    path_of,
    plan_args,
    prompt_of,
    tool_choice_of,
)
from earthshine.llm.outputs import OutputBuilder, RequestOutput
from earthshine.plan import PlanArgs, read_plan
from earthshine.text import Tokenizer, has_template, load_template

Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]

_IN_FLIGHT = 256  # choices of one call that the engine holds at once; the others wait here


class ChatOptions(TypedDict, total=False):
    """Options of `chat`. `tools` have OpenAI's form; `tool_choice`: "auto", "none", "required" or a function's name;
    `thinking`: whether the model thinks first, by default as its template has it; `continue_final_message`: the last
    message is the assistant's and is continued; `structured_outputs`: as `generate` has it."""

    tools: Sequence[dict[str, Any]]
    tool_choice: str
    thinking: bool | None
    continue_final_message: bool
    structured_outputs: Mapping[str, Any] | None


class LLM:
    """Loads a model and answers prompts and conversations.

    Args:
        model: a folder, a Hugging Face id (downloaded first), or "gleam", the small model that ships inside.
        memory: what the process may hold, such as "16GiB" or a number of bytes; by default what suits the machine.
        context: tokens of each sequence (vLLM's `max_model_len`); by default what the memory allows.
        batch: sequences that are decoded together (vLLM's `max_num_seqs`).
        threads: of the kernels; by default the machine's cores.
        trunk: "bf16" as published, or "int8", which is lossy.
        dtype: of activations, "bf16" or "fp32".
        plan: a file that `earthshine plan --save` wrote, instead of memory, context, batch, threads, trunk and dtype.

    Raises SourceError, SpecError, Unsupported, CheckpointError and TextError for a model that can't be used, and
    UsageError for options that have no meaning or for too little memory; the message names the least that works.
    """

    def __init__(
        self,
        model: str | Path = "gleam",
        *,
        memory: str | int | None = None,
        context: int | None = None,
        batch: int = 8,
        threads: int | None = None,
        trunk: str = "bf16",
        dtype: str = "bf16",
        plan: str | Path | None = None,
    ) -> None:
        args = plan_args(memory, context, batch, threads, trunk, dtype)
        saved = None if plan is None else path_of("plan", plan)
        path_of("model", model)
        if saved is not None and args != PlanArgs(batch=8, cache_tokens=0):
            raise UsageError("A plan says all about how the model is held; leave out the other options.")
        folder, self._tokenizer = find_readable(str(model))
        template = load_template(folder) if has_template(folder) else None
        self._defaults = default_sampling_params(folder)
        loaded = load_model(folder, args if saved is None else read_plan(saved))
        try:
            self._engine = Engine(loaded, EngineOptions(max_queue=1 << 20))
        except BaseException:
            loaded.close()
            raise
        spec = loaded.spec
        context_tokens = self._engine.context_tokens
        self._prompts = Prompts(self._tokenizer, template, spec.vocab_size, spec.stop_tokens, context_tokens)
        self._ids = itertools.count()
        self._close = weakref.finalize(self, _close, self._engine, loaded)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        structured_outputs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; one output for each, in their order.

        Args:
            prompts: a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; or a list of these. Control
                tokens that are written in a text are text; give token ids to use them.
            sampling_params: for all prompts, or one for each; by default the model's own.
            structured_outputs: the form that each answer must have, in vLLM's words: one of {"json": schema},
                {"json_object": True}, {"regex": text}, {"grammar": text in Lark} and {"choice": [text, ...]}.

        Raises UsageError, ContextError and TextError for invalid parameters and prompts, before any is computed.
        """
        return self._whole(self._requests(prompts, sampling_params, structured_outputs))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        structured_outputs: Mapping[str, Any] | None = None,
    ) -> Iterator[RequestOutput]:
        """As `generate`, but yields outputs as they come: each holds what is new, `request_id` says of which prompt.

        Closing the iterator cancels what is still computed.
        """
        return self._stream(self._requests(prompts, sampling_params, structured_outputs))

    def chat(
        self, messages: Messages | Sequence[Messages], sampling_params: Params = None, **options: Unpack[ChatOptions]
    ) -> list[RequestOutput]:
        """Answer conversations; one output for each, in their order.

        Args:
            messages: in OpenAI's form, such as [{"role": "user", "content": "Hello"}]; or a list of conversations.
            sampling_params: for all conversations, or one for each; by default the model's own.
            options: see ChatOptions.

        Raises UsageError, ContextError and TextError for invalid parameters and messages, before any is computed.
        """
        return self._whole(self._conversations(messages, sampling_params, **options))

    def stream_chat(
        self, messages: Messages | Sequence[Messages], sampling_params: Params = None, **options: Unpack[ChatOptions]
    ) -> Iterator[RequestOutput]:
        """As `chat`, but yields outputs as they come, as `stream` does."""
        return self._stream(self._conversations(messages, sampling_params, **options))

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own: what its publisher recommends, or greedy where nothing is recommended."""
        return self._defaults

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def close(self) -> None:
        """End the engine and free the model. Requests of other threads end with an OverloadError."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _requests(
        self, prompts: Prompt | Sequence[Prompt], params: Params, structured_outputs: Mapping[str, Any] | None
    ) -> list[GenerationRequest]:
        form = format_of(structured_outputs)
        given: Sequence[Any] = [prompts] if is_one_prompt(prompts) else prompts  # type: ignore[assignment]
        found = [prompt_of(prompt) for prompt in given]
        each = zip(found, params_of(params, len(found), self._defaults), strict=True)
        return [GenerationRequest(prompt, own, format=form) for prompt, own in each]

    def _conversations(
        self,
        messages: Messages | Sequence[Messages],
        params: Params,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str = "auto",
        thinking: bool | None = None,
        continue_final_message: bool = False,
        structured_outputs: Mapping[str, Any] | None = None,
    ) -> list[GenerationRequest]:
        if not isinstance(messages, Sequence):
            raise UsageError("messages must be a list of messages, or a list of such lists.", "messages")
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if one else messages
        choice, form = tool_choice_of(tool_choice, tools or ()), format_of(structured_outputs)
        thinking = None if thinking is None else flag_of("thinking", thinking)
        continued = flag_of("continue_final_message", continue_final_message)
        each = params_of(params, len(conversations), self._defaults)
        for conversation in conversations:
            if not conversation or not all(isinstance(message, Mapping) for message in conversation):
                raise UsageError("A conversation is a list of messages such as {'role': 'user', 'content': 'Hello'}.")
        return [
            GenerationRequest(
                [dict(message) for message in conversation],
                own,
                tools=tuple(tools or ()),
                tool_choice=choice,
                thinking=thinking,
                continue_final_message=continued,
                format=form,
            )
            for conversation, own in zip(conversations, each, strict=True)
        ]

    def _whole(self, requests: Sequence[GenerationRequest]) -> list[RequestOutput]:
        builders: dict[int, OutputBuilder] = {}
        for at, builder in self._run(self._prepared(requests)):
            builders[at] = builder
        return [builders[at].take() for at in range(len(requests))]

    def _stream(self, requests: Sequence[GenerationRequest]) -> Iterator[RequestOutput]:
        """What is invalid is refused by this call; what it returns computes as it is advanced."""
        news = self._run(self._prepared(requests))
        return (builder.take() for _, builder in news if builder.has_news)

    def _prepared(self, requests: Sequence[GenerationRequest]) -> list[Prepared]:
        if not self._close.alive:
            raise UsageError("This LLM is closed; make another one.")
        return list(map(self._prompts.prepare, requests))

    def _run(self, requests: Sequence[Prepared]) -> Iterator[tuple[int, OutputBuilder]]:
        """The place and the builder of whichever request has news, again and again until all have finished."""
        waiting = iter(list(enumerate(requests)))
        events: SimpleQueue[tuple[int, ReplyEvent]] = SimpleQueue()
        submission = Submission(self._engine, self._tokenizer, lambda number, event: events.put((number, event)))
        places: dict[int, tuple[int, int, OutputBuilder]] = {}  # by the submission's number
        try:
            while True:
                while len(submission.live) < _IN_FLIGHT and (following := next(waiting, None)) is not None:
                    self._submit(submission, *following, places)
                if not submission.live:
                    return
                number, event = events.get()
                at, choice, builder = places[number]
                builder.add(choice, event, submission.pieces([(number, event)]))
                yield at, builder
        finally:
            submission.cancel()

    def _submit(
        self, submission: Submission, at: int, prepared: Prepared, places: dict[int, tuple[int, int, OutputBuilder]]
    ) -> None:
        builder = OutputBuilder(str(next(self._ids)), prepared, self._tokenizer)
        for choice, number in enumerate(submission.add(prepared)):
            places[number] = at, choice, builder


def _close(engine: Engine, loaded: LoadedModel) -> None:
    engine.close()
    loaded.close()
