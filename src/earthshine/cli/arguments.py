"""What several commands take, as typer declares it: the model, and how it is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from earthshine.cli import models

MODEL_HELP = "A folder, a Hugging Face id (downloaded first), or gleam, the included small model and the default."
Model = Annotated[str | None, typer.Argument(help=MODEL_HELP, autocompletion=models.complete_model)]
Described = Annotated[
    str | None,
    typer.Argument(
        help="A folder, a Hugging Face id (its weights are not downloaded), the path of a config.json, or gleam, the "
        "included small model and the default.",
        autocompletion=models.complete_model,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Type of activations: bf16 as published, or fp32. FP8 and INT4 weights decode to bf16 either way."
    ),
]
Memory = Annotated[
    str | None, typer.Option(help="Memory that the process may use, such as 16GiB; default: most of what is free.")
]
Context = Annotated[
    int | None, typer.Option(help="Most tokens of a conversation; default: what the memory allows, up to 32768.")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads to use; default: all processors. Results do not depend on it.")
]
Trunk = Annotated[
    str,
    typer.Option(
        help="Weights other than experts: bf16, which means as published, or int8, which is lossy and halves the "
        "memory of bf16 weights. In int8 they all stay in memory, so that the smallest --memory is larger."
    ),
]

PlanFile = Annotated[
    Path | None,
    typer.Option(help="A file from earthshine plan --save, instead of the options that say how the model is loaded."),
]

PrefillPeers = Annotated[
    list[str] | None,
    typer.Option(
        "--prefill",
        metavar="URL",
        help="A worker (earthshine prefill) that may prefill long prompts: earthshine://HOST:PORT, or "
        "earthshine+plain://HOST:PORT without TLS. May be repeated.",
    ),
]
PrefillToken = Annotated[Path | None, typer.Option("--prefill-token", help="A file with the workers' API key.")]
PrefillCa = Annotated[
    Path | None,
    typer.Option("--prefill-ca", help="PEM certificates that may sign a worker's; default: the system's."),
]
PrefillPins = Annotated[
    list[str] | None,
    typer.Option("--prefill-pin", help="SHA-256 of a worker's certificate, trusted as it is. May be repeated."),
]
AllowPlain = Annotated[
    list[str] | None,
    typer.Option(help="A host that may be reached, or an address to listen on, without TLS. May be repeated."),
]
PrefillLink = Annotated[
    float, typer.Option(help="Gb/s to assume of the link to a worker before transfers have shown it.")
]
PrefillAbove = Annotated[
    int | None,
    typer.Option(
        help="Let workers prefill prompts that lack more tokens than this, and no others; default: where the first "
        "token is expected sooner."
    ),
]
ApiKeys = Annotated[Path | None, typer.Option(help="File of API keys, one per line, readable by you only.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate with its chain, in PEM. Needs --tls-key.")]
TlsKey = Annotated[Path | None, typer.Option(help="The certificate's key, in PEM without a password.")]
DiskCache = Annotated[
    str | None, typer.Option(help="Keep cached prefixes on disk, up to this size, such as 50GiB; default: off.")
]
DiskCacheFolder = Annotated[
    Path | None, typer.Option(help="Folder of the disk cache; default: ~/.cache/earthshine/pages.")
]
