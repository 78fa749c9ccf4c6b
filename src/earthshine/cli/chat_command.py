"""The options of `earthshine chat`. Imports no torch, so that the loading message appears at once."""

from typing import Annotated

import typer

from earthshine.cli.arguments import Context, Dtype, Memory, Model, PlanFile, Threads, Trunk
from earthshine.errors import UsageError

Question = Annotated[
    list[str] | None, typer.Argument(metavar="prompt", help="Answer this question and exit, as with -p.")
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="Answer this question and exit. Standard input is put before it."),
]
ShowMarkdown = Annotated[bool, typer.Option("--markdown/--no-markdown", help="Render Markdown on a terminal.")]
KeepHistory = Annotated[
    bool,
    typer.Option(
        "--history/--no-history",
        help="Keep questions for later sessions; EARTHSHINE_HISTORY=off is the same as --no-history.",
    ),
]
AnswerFormat = Annotated[
    str | None, typer.Option(metavar="json|text", help="What replies must be: json for JSON objects; default: text.")
]
JsonSchema = Annotated[
    str | None,
    typer.Option(metavar="SCHEMA", help="A JSON schema that replies must fit: its text, or a file that holds it."),
]
PresencePenalty = Annotated[float, typer.Option(help="Subtracted from the logit of each token generated so far.")]
FrequencyPenalty = Annotated[float, typer.Option(help="The same, times the number of times the token was generated.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Divides the logits of tokens in the prompt or reply; 1 for off.")
]


def chat(
    model: Model = None,
    words: Question = None,
    prompt: Prompt = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    format: AnswerFormat = None,
    json_schema: JsonSchema = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a reply; default: up to the end of the context.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature, 0 for greedy; default: the model's own, or else 0.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Probability mass of the tokens to sample from; default: the model's own, or else 1."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Least probability of a token, relative to the most likely one.")] = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling; the same seed gives the same reply.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the reply before this text. May be repeated.")] = None,
    thinking: Annotated[bool, typer.Option(help="Let the model think before it answers.")] = True,
    stats: Annotated[bool, typer.Option(help="After each reply, print rates, expert hits and bytes read.")] = False,
    markdown: ShowMarkdown = True,
    history: KeepHistory = True,
    context: Context = None,
    memory: Memory = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
) -> None:
    """Chat with a model in the terminal. With a question, or text on standard input, print one answer."""
    from earthshine.cli.chat import run_chat
    from earthshine.cli.options import ChatOptions, plan_or_args

    held = plan_or_args(memory, context, threads, trunk, dtype, plan)
    if words and prompt is not None:
        raise UsageError("The question is given twice, after the model and with -p; leave one out.")
    asked = " ".join(words) if words else prompt
    forms = (format, json_schema)
    options = ChatOptions(asked, system, thinking, tuple(stop or ()), held, stats, markdown, history, *forms)
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "top_k": top_k,
        "min_p": min_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    run_chat(model, options, {key: value for key, value in sampling.items() if value is not None})
