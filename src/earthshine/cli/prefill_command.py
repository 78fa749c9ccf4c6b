"""The options of `earthshine prefill`."""

from typing import Annotated

import typer

from earthshine.cli.arguments import (
    AllowPlain,
    ApiKeys,
    Context,
    DiskCache,
    DiskCacheFolder,
    Dtype,
    Memory,
    Model,
    PlanFile,
    Threads,
    TlsCert,
    TlsKey,
    Trunk,
)
from earthshine.cli.words import SERVE_BATCH


def prefill(
    model: Model = None,
    listen: Annotated[
        str,
        typer.Option(help="HOST:PORT for prompts and caches. A host that others reach needs --api-keys and TLS."),
    ] = "127.0.0.1:7100",
    status: Annotated[str, typer.Option(help="HOST:PORT for /health and /metrics.")] = "127.0.0.1:8100",
    api_keys: ApiKeys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_plain: AllowPlain = None,
    memory: Memory = None,
    context: Context = None,
    batch: Annotated[int | None, typer.Option(help=f"Most prompts computed at once; default: {SERVE_BATCH}.")] = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
    disk_cache: DiskCache = None,
    disk_cache_folder: DiskCacheFolder = None,
    max_queue: Annotated[int, typer.Option(help="Most prompts accepted at once. More are refused as busy.")] = 64,
    drain_seconds: Annotated[float, typer.Option(help="Seconds for running prompts to finish at shutdown.")] = 30.0,
    hang_seconds: Annotated[float, typer.Option(help="Seconds without progress until /health answers 503.")] = 120.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one per line.")] = False,
) -> None:
    """Prefill prompts for `earthshine serve --prefill` on other machines, until Ctrl-C."""
    from earthshine.cli.options import plan_or_args
    from earthshine.cli.prefill import PrefillOptions, run_prefill

    at_once = batch if batch is not None else 1 if plan is not None else SERVE_BATCH
    held = plan_or_args(memory, context, threads, trunk, dtype, plan, at_once)
    security = (api_keys, tls_cert, tls_key, tuple(allow_plain or ()))
    cache = (disk_cache, disk_cache_folder)
    seconds = (drain_seconds, hang_seconds)
    run_prefill(model, PrefillOptions(listen, status, held, *security, *cache, max_queue, *seconds, log_json))
