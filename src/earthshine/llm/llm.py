"""`LLM`: a model in this process that answers lists of prompts. It uses the server's engine and batches prompts.

Invalid parameters and prompts are refused before anything is computed. If a prompt fails, its error is raised and the
other prompts of the call are cancelled.
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
from earthshine.generation.output import Choice
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import GenerationRequest
from earthshine.generation.submission import Submission
from earthshine.hub import find_readable
from earthshine.llm.inputs import (
    Params,
    conversation_of,
    flag_of,
    format_of,
    is_one_prompt,
    params_of,
    path_of,
    plan_args,
    prompt_of,
    require_known,
    tool_choice_of,
    tools_of,
)
from earthshine.llm.outputs import OutputBuilder, RequestOutput
from earthshine.plan import PlanArgs, read_plan
from earthshine.text import Tokenizer, has_template, load_template

Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]

_IN_FLIGHT = 256  # choices of one call that are submitted at once


class ChatOptions(TypedDict, total=False):
    """Options of `chat`. `tools`: in OpenAI's form; `tool_choice`: "auto", "none", "required" or a function's name;
    `thinking`: whether the model thinks first, by default as its template does; `continue_final_message`: the last
    message is the assistant's and is continued; `structured_outputs`: as in `generate`."""

    tools: Sequence[dict[str, Any]]
    tool_choice: str
    thinking: bool | None
    continue_final_message: bool
    structured_outputs: Mapping[str, Any] | None


class LLM:
    """Loads a model and answers prompts and conversations.

    Args:
        model: a folder, a Hugging Face id (downloaded first), or "gleam", the small model that is included.
        memory: the memory that the process may use, such as "16GiB" or a number of bytes; by default most of what is
            free.
        context: the most tokens of a sequence (vLLM's `max_model_len`); by default what the memory allows.
        batch: the most sequences that are decoded together (vLLM's `max_num_seqs`).
        threads: threads of the kernels; by default one per core.
        trunk: the format of all weights but the experts: "bf16" as published, or "int8", which is lossy.
        dtype: the type of activations: "bf16" or "fp32".
        plan: a file written by `earthshine plan --save`, instead of memory, context, batch, threads, trunk and dtype.

    Raises SourceError, SpecError, Unsupported, CheckpointError and TextError for a model that can't be used, and
    UsageError for invalid options and for too little memory; the message gives the smallest memory that works.
    """

    def __new__(cls, *values: Any, **named: Any) -> Self:
        if cls.__init__ is LLM.__init__:  # a subclass may take others
            require_known(named, ("model", *(LLM.__init__.__kwdefaults__ or ())))
        return object.__new__(cls)

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
        if saved is not None and args != PlanArgs(batch=8):
            raise UsageError("A plan has all options for loading the model; leave out the other options.")
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
            prompts: a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; or a list of these. A control
                token that is written in a text is text; give token ids to use control tokens.
            sampling_params: one for all prompts, or a list of one for each; by default the model's own.
            structured_outputs: the format of each answer, as in vLLM: one of {"json": schema}, {"json_object": True},
                {"regex": text}, {"grammar": text in Lark} and {"choice": [text, ...]}.

        Raises UsageError, ContextError and TextError for invalid parameters and prompts, before anything is computed.
        """
        return self._whole(self._requests(prompts, sampling_params, structured_outputs))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        structured_outputs: Mapping[str, Any] | None = None,
    ) -> Iterator[RequestOutput]:
        """As `generate`, but yields outputs as they come. Each has what is new of the prompt named by `request_id`.

        Closing the iterator cancels the prompts that have not finished.
        """
        return self._stream(self._requests(prompts, sampling_params, structured_outputs))

    def chat(
        self, messages: Messages | Sequence[Messages], sampling_params: Params = None, **options: Unpack[ChatOptions]
    ) -> list[RequestOutput]:
        """Answer conversations; one output for each, in their order.

        Args:
            messages: in OpenAI's form, such as [{"role": "user", "content": "Hello"}]; or a list of conversations.
            sampling_params: one for all conversations, or a list of one for each; by default the model's own.
            options: see ChatOptions.

        Raises UsageError, ContextError and TextError for invalid parameters and messages, before anything is computed,
        and UnavailableError where the process that renders templates does not work at the moment.
        """
        return self._whole(self._conversations(messages, sampling_params, **options))

    def stream_chat(
        self, messages: Messages | Sequence[Messages], sampling_params: Params = None, **options: Unpack[ChatOptions]
    ) -> Iterator[RequestOutput]:
        """As `chat`, but yields outputs as they come, as `stream` does."""
        return self._stream(self._conversations(messages, sampling_params, **options))

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends; greedy where it recommends nothing."""
        return self._defaults

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def close(self) -> None:
        """Stop the engine and free the model. Requests of other threads end with an OverloadError."""
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
        declared = tools_of(tools)
        choice, form = tool_choice_of(tool_choice, declared), format_of(structured_outputs)
        thinking = None if thinking is None else flag_of("thinking", thinking)
        continued = flag_of("continue_final_message", continue_final_message)
        each = params_of(params, len(conversations), self._defaults)
        return [
            GenerationRequest(
                conversation,
                own,
                tools=declared,
                tool_choice=choice,
                thinking=thinking,
                continue_final_message=continued,
                format=form,
            )
            for conversation, own in zip(map(conversation_of, conversations), each, strict=True)
        ]

    def _whole(self, requests: Sequence[GenerationRequest]) -> list[RequestOutput]:
        builders: dict[int, OutputBuilder] = {}
        for at, builder in self._run(self._choices(requests)):
            builders[at] = builder
        return [builders[at].take() for at in range(len(requests))]

    def _stream(self, requests: Sequence[GenerationRequest]) -> Iterator[RequestOutput]:
        """Invalid requests are refused by this call; the iterator that it returns computes as it is advanced."""
        news = self._run(self._choices(requests))
        return (builder.take() for _, builder in news if builder.has_news)

    def _choices(self, requests: Sequence[GenerationRequest]) -> list[list[Choice]]:
        if not self._close.alive:
            raise UsageError("This LLM is closed; make another one.")
        return list(map(self._prompts.choices, requests))

    def _run(self, requests: Sequence[Sequence[Choice]]) -> Iterator[tuple[int, OutputBuilder]]:
        """For each event, the index of its request and that request's builder, until all requests have finished."""
        waiting = iter(list(enumerate(requests)))
        events: SimpleQueue[tuple[int, ReplyEvent]] = SimpleQueue()
        submission = Submission(self._engine, lambda number, event: events.put((number, event)))
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
        self,
        submission: Submission,
        at: int,
        choices: Sequence[Choice],
        places: dict[int, tuple[int, int, OutputBuilder]],
    ) -> None:
        builder = OutputBuilder(str(next(self._ids)), choices[0], self._tokenizer)
        for index, number in enumerate(submission.add(choices)):
            places[number] = at, index, builder


def _close(engine: Engine, loaded: LoadedModel) -> None:
    engine.close()
    loaded.close()
