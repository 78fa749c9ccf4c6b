"""From a folder in a published format to a model that sessions can use, within a number of bytes.

This is where floors meet: the spec says what should be there, the plan divides the memory, the checkpoint yields
tensors by Earthshine's names, and the decoder takes them. With fp32 activations all of the trunk is used in fp32.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.engine.session import Session
from earthshine.engine.sizes import sizes_of
from earthshine.errors import CheckpointError, UsageError
from earthshine.kv import PagePool
from earthshine.machine import memory_available, memory_resident, processors
from earthshine.models import Decoder, ResidentTrunk, Trunk
from earthshine.plan import Division, divide
from earthshine.spec import ModelSpec, load_spec, trunk_tensors
from earthshine.untrusted import parse_object, read_file, resolve_in, shown
from earthshine.weights import Checkpoint, ExpertStore, Manifest, Reader, StoredTrunk, exactly, load_manifest
from earthshine.weights.manifest import trunk_ranges

PAGE_TOKENS = 64
TRUNKS = ("bf16", "int8")
MOST_THREADS = 512
_SHARE = 0.85  # of what the system has to give, where no budget is named
_MAX_DEFAULTS_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]  # what is read, bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be held. `memory_bytes`: of the whole process, by default most of what the system has to give;
    `context_tokens`: room for so many; `threads`: by default every processor; `trunk`: bf16 as published, or int8."""

    dtype: torch.dtype = torch.bfloat16
    memory_bytes: int | None = None
    context_tokens: int | None = None
    threads: int | None = None
    trunk: str = "bf16"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for sessions. `fingerprint` names its weights, so that a saved state of another one is refused."""

    spec: ModelSpec
    decoder: Decoder
    experts: ExpertStore
    fingerprint: str
    division: Division
    reader: Reader

    def session(self, context_tokens: int | None = None) -> Session:
        """An empty session with pages of its own for `context_tokens`, by default all that the budget has room for.

        Sessions that are open at once share that room only if each is asked for with a part of it.

        Raises UsageError for a context that the model or the budget does not have.
        """
        spec, room = self.spec, self.division.context_tokens
        wanted = room if context_tokens is None else context_tokens
        if not 1 <= wanted <= room:
            raise UsageError(f"A context of {wanted} tokens is not possible; this model has room for 1 to {room}.")
        pages = -(-wanted // PAGE_TOKENS)
        pool = PagePool(spec.n_layers, spec.latent_dim, PAGE_TOKENS, pages, self.decoder.dtype)
        return Session(
            self.decoder,
            pool,
            fingerprint=self.fingerprint,
            context_tokens=wanted,
            prefill_tokens=self.division.prefill_tokens,
        )

    def close(self) -> None:
        """Ends the reading threads; the model can't be used afterwards."""
        self.reader.close()


def load_model(folder: Path, options: LoadOptions | None = None, progress: Progress | None = None) -> LoadedModel:
    """Open the checkpoint in `folder` and read what is to stay in memory.

    Raises SpecError, Unsupported and CheckpointError for what is wrong with the files, and UsageError for a budget that
    is too small, which names the smallest, or for options that do not go together.
    """
    options = options or LoadOptions()
    _check(options)
    spec = load_spec(folder)
    checkpoint = Checkpoint.open(folder, spec)
    manifest = load_manifest(checkpoint)
    division = _division(checkpoint, options)
    kernels.set_threads(options.threads or min(processors(), MOST_THREADS), options.dtype)
    reader = Reader()
    try:
        trunk = _trunk(checkpoint, reader, manifest, division, options, progress)
        experts = ExpertStore(
            checkpoint,
            slots_per_layer=division.slots_per_layer,
            transit_slots=division.transit_slots,
            reader=reader,
            dtype=options.dtype,
            manifest=manifest,
        )
        if division.transit_slots == 0 and division.slots_per_layer:
            experts.preload(_named(progress, "experts"))
    except BaseException:
        reader.close()
        raise
    fingerprint = checkpoint.fingerprint() + ("-int8" if options.trunk == "int8" else "")  # its latents are others
    return LoadedModel(spec, Decoder(spec, trunk, experts), experts, fingerprint, division, reader)


def _check(options: LoadOptions) -> None:
    if options.trunk not in TRUNKS:
        raise UsageError(f"{options.trunk!r} is not a form of the trunk; choose one of {', '.join(TRUNKS)}.")
    if options.trunk != "bf16" and options.dtype != torch.bfloat16:
        raise UsageError("A trunk in int8 takes bf16 activations; leave --dtype or --trunk at its default.")
    if options.threads is not None and not 1 <= options.threads <= MOST_THREADS:
        raise UsageError(f"{options.threads} threads are not possible; choose 1 to {MOST_THREADS}.")


def _division(checkpoint: Checkpoint, options: LoadOptions) -> Division:
    spec, asked = checkpoint.spec, options.context_tokens
    if asked is not None and not 1 <= asked <= spec.max_context:
        raise UsageError(f"A context of {asked} tokens is not possible; this model takes 1 to {spec.max_context}.")
    process = memory_resident()
    asked_bytes = options.memory_bytes
    budget = process + int(_SHARE * memory_available()) if asked_bytes is None else asked_bytes
    # What is rounded, or used in fp32, is so once and for all: then results can't depend on what streams.
    stays = options.trunk != "bf16" or options.dtype != torch.bfloat16
    sizes = sizes_of(checkpoint, options.dtype, options.trunk)
    return divide(sizes, budget, process, spec.max_context, asked, may_stream=not stays)


def _trunk(
    checkpoint: Checkpoint,
    reader: Reader,
    manifest: Manifest | None,
    division: Division,
    options: LoadOptions,
    progress: Progress | None,
) -> Trunk:
    if options.dtype != torch.bfloat16:
        return ResidentTrunk(read_trunk(checkpoint, options.dtype, manifest))
    return StoredTrunk(
        checkpoint,
        reader,
        streamed=frozenset(division.streamed),
        embedding_on_disk=division.embedding_on_disk,
        int8=options.trunk == "int8",
        manifest=manifest,
        progress=_named(progress, "trunk"),
    )


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return report


def read_trunk(checkpoint: Checkpoint, dtype: torch.dtype, manifest: Manifest | None = None) -> dict[str, Tensor]:
    """Every trunk tensor by Earthshine's name, in `dtype` but for the routers and their biases, which are fp32.

    Each is held against the manifest first, where there is one.
    """
    trunk, ranges = {}, dict(trunk_ranges(checkpoint))
    for tensor in trunk_tensors(checkpoint.spec):
        if manifest is not None:
            manifest.check_stored(tensor.name, ranges[tensor.name])
        value = checkpoint.trunk(tensor.name)
        trunk[tensor.name] = exactly(value, torch.float32 if tensor.in_fp32 else dtype, tensor.name)
    return trunk


def sampling_defaults(folder: Path) -> dict[str, float]:
    """`temperature` and `top_p` that the publisher recommends in generation_config.json; greedy where it says nothing.

    Raises CheckpointError for a file that is no JSON object of at most 1 MiB with sensible numbers there.
    """
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return {"temperature": 0.0}
    real = resolve_in(folder, path.name, CheckpointError)
    found = parse_object(read_file(real, str(path), _MAX_DEFAULTS_BYTES, CheckpointError), str(path), CheckpointError)
    chosen = {key: found[key] for key in ("temperature", "top_p") if found.get(key) is not None}
    for key, value in chosen.items():
        most = 1 if key == "top_p" else 100
        if type(value) not in (int, float) or not 0 <= value <= most or (key == "top_p" and value == 0):
            raise CheckpointError(f"{path} gives {shown(value)} as {key}; it must be a number up to {most}.")
    if found.get("do_sample") is False:
        return {"temperature": 0.0}
    return {"temperature": 0.0 if "top_p" not in chosen else 1.0} | {k: float(v) for k, v in chosen.items()}
