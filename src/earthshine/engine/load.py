"""Loads a model from a folder in a published format, as a plan says.

With fp32 activations the whole trunk is used in fp32. Refuses a plan of another model, and one that exceeds its budget
with these files in this process.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.engine.experts import RoutedExperts
from earthshine.engine.memory_limit import MemoryLimit
from earthshine.engine.sampling_params import SamplingParams
from earthshine.engine.session import Session
from earthshine.engine.sizes import stored_sizes
from earthshine.errors import CheckpointError, UsageError
from earthshine.kv import PagePool
from earthshine.machine import Machine, memory_available, memory_resident, memory_total, processors
from earthshine.models import Decoder, ResidentTrunk, Trunk
from earthshine.plan import Plan, PlanArgs, check_args, check_memory, make_plan, model_name
from earthshine.plan.budget import NEW_PLAN
from earthshine.plan.plan import PROCESS_BYTES
from earthshine.spec import ModelSpec, load_spec, trunk_tensors
from earthshine.spec.attention import STATES_PER_SEQUENCE
from earthshine.storage import PAGE_TOKENS, page_count
from earthshine.units import format_bytes
from earthshine.untrusted import parse_object, read_file, resolve_in, shown
from earthshine.weights import Checkpoint, ExpertStore, Manifest, Reader, StoredTrunk, exactly, load_manifest
from earthshine.weights.manifest import trunk_ranges
from earthshine.weights.reading import ReadProgress

_MAX_DEFAULTS_BYTES = 1 << 20

LoadProgress = Callable[[str, int, int], None]  # what is read, bytes done, bytes in all


class _Pages:
    """Counts the plan's pages and slots for recurrent states that no session has."""

    def __init__(self, n_pages: int, n_states: int) -> None:
        self.left, self.states_left = n_pages, n_states

    def take(self, pool: PagePool) -> Callable[[], object]:
        """Takes those of `pool`. They come back when the returned function is called, or with the pool's end."""
        n_states = pool.states.n_slots if pool.states else 0
        self._give(-pool.n_pages, -n_states)
        return weakref.finalize(pool, self._give, pool.n_pages, n_states)

    def _give(self, n_pages: int, n_states: int) -> None:
        self.left += n_pages
        self.states_left += n_states


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready for sessions.

    `fingerprint` names its weights and the numerics of its kernels. A saved state is refused by a model with another.
    """

    spec: ModelSpec
    decoder: Decoder
    experts: RoutedExperts
    fingerprint: str
    plan: Plan
    reader: Reader
    memory_limit: MemoryLimit
    pages: _Pages

    def session(self, context_tokens: int | None = None) -> Session:
        """An empty session for up to `context_tokens` tokens; by default the plan's context.

        Its pages are taken from the plan's, which all open sessions share, and returned by `Session.close`. Raises
        UsageError where they are too few.
        """
        spec, memory = self.spec, self.plan.memory
        wanted = memory.context_tokens if context_tokens is None else context_tokens
        if not 1 <= wanted <= memory.pages * PAGE_TOKENS or wanted > spec.max_context:
            most = min(memory.pages * PAGE_TOKENS, spec.max_context)
            raise UsageError(f"context must be between 1 and {most} tokens with this plan, not {wanted}.", "context")
        n_pages = page_count(wanted)
        if n_pages > self.pages.left:
            raise UsageError(
                f"A context of {wanted} tokens takes {n_pages} pages, and the sessions that are open leave "
                f"{self.pages.left}; close one, or plan for more at once."
            )
        if self.pages.states_left < STATES_PER_SEQUENCE:
            raise UsageError(
                f"The plan has room for the recurrent states of {memory.batch} sequences, and the sessions that are "
                "open have taken it; close one, or plan for a larger batch."
            )
        pool = PagePool(spec.kept, PAGE_TOKENS, n_pages, self.decoder.dtype, STATES_PER_SEQUENCE)
        return Session(
            self.decoder,
            pool,
            fingerprint=self.fingerprint,
            context_tokens=wanted,
            prefill_tokens=memory.prefill_tokens,
            memory_limit=self.memory_limit,
            on_close=self.pages.take(pool),
        )

    def pool(self) -> PagePool:
        """A pool of all pages that no session has. Raises UsageError for fewer than one context."""
        states = self.pages.states_left
        if self.pages.left * PAGE_TOKENS < self.plan.memory.context_tokens or states < STATES_PER_SEQUENCE:
            raise UsageError("The sessions that are open leave too few pages for one context; close them first.")
        pool = PagePool(self.spec.kept, PAGE_TOKENS, self.pages.left, self.decoder.dtype, states)
        self.pages.take(pool)
        return pool

    def close(self) -> None:
        """Ends the reading threads; the model can't be used afterwards."""
        self.reader.close()


def load_model(folder: Path, plan: Plan | PlanArgs | None = None, progress: LoadProgress | None = None) -> LoadedModel:
    """Open the checkpoint in `folder` and read the weights that the plan keeps in memory.

    `plan`: a plan, or the arguments of one. Raises SpecError, Unsupported and CheckpointError for invalid files, and
    UsageError for invalid arguments, a plan of another model, and too little memory (it names the smallest budget).
    """
    spec = load_spec(folder)
    args = plan if isinstance(plan, PlanArgs) else PlanArgs()
    check_args(args, spec)
    checkpoint = Checkpoint.open(folder, spec)
    manifest = load_manifest(checkpoint)
    plan = _checked(checkpoint, plan) if isinstance(plan, Plan) else plan_for(checkpoint, args)
    kernels.set_threads(plan.threads, _dtype(plan))
    reader = Reader()
    try:
        trunk = _trunk(checkpoint, reader, manifest, plan, progress)
        memory = plan.memory
        store = ExpertStore(
            checkpoint,
            slots_per_layer=memory.slots_per_layer,
            transit_slots=memory.transit_slots,
            reader=reader,
            dtype=_dtype(plan),
            manifest=manifest,
        )
        if memory.transit_slots == 0 and memory.slots_per_layer:
            store.preload(_named(progress, "experts"))
    except BaseException:
        reader.close()
        raise
    trunk_form = "-int8" if plan.trunk == "int8" else ""  # its latents are others
    fingerprint = f"{checkpoint.fingerprint()}{trunk_form}-{kernels.numerics(_dtype(plan))}"
    pages, experts = _Pages(memory.pages, memory.batch * STATES_PER_SEQUENCE), RoutedExperts(store)
    memory_limit = MemoryLimit(memory.budget_bytes, store.shrink)
    return LoadedModel(spec, Decoder(spec, trunk, experts), experts, fingerprint, plan, reader, memory_limit, pages)


def plan_for(checkpoint: Checkpoint, args: PlanArgs, machine: Machine | None = None) -> Plan:
    """The plan for these files in this process. A measured `machine` adds the forecast. Raises UsageError."""
    total = memory_total()
    if args.memory_bytes is not None and args.memory_bytes > total:
        raise UsageError(
            f"memory must be at most {format_bytes(total)}, which this process may use here, not "
            f"{format_bytes(args.memory_bytes)}.",
            "memory",
        )
    held = memory_resident()
    return make_plan(
        checkpoint.spec,
        args,
        machine,
        process_bytes=max(held, PROCESS_BYTES),
        available_bytes=max(0, memory_available() + held - max(held, PROCESS_BYTES)),
        processors=processors(),
        sizes=stored_sizes(checkpoint, args.dtype, args.trunk),
    )


def _checked(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan. Raises UsageError where it is of another model, or exceeds its budget with these files."""
    wanted = model_name(checkpoint.spec)
    if plan.model != wanted:
        raise UsageError(f"The plan is for {shown(plan.model)}, and this model is {wanted}; {NEW_PLAN}.")
    if plan.memory.budget_bytes > memory_total():
        raise UsageError(
            f"The plan's budget of {format_bytes(plan.memory.budget_bytes)} is more than this process may use here, "
            f"{format_bytes(memory_total())}; {NEW_PLAN} on this machine."
        )
    memory = plan.memory
    check_args(
        PlanArgs(None, memory.context_tokens, memory.batch, plan.threads, plan.trunk, plan.dtype),
        checkpoint.spec,
    )
    if memory.streamed and (plan.trunk, plan.dtype) != ("bf16", "bf16"):
        raise UsageError(
            f"The plan streams layers of a trunk that is int8 or used in fp32, which must stay in memory; {NEW_PLAN}."
        )
    sizes = stored_sizes(checkpoint, plan.dtype, plan.trunk)
    check_memory(plan.memory, sizes, max(memory_resident(), plan.process_bytes))
    return plan


def _dtype(plan: Plan) -> torch.dtype:
    return torch.float32 if plan.dtype == "fp32" else torch.bfloat16


def _trunk(
    checkpoint: Checkpoint,
    reader: Reader,
    manifest: Manifest | None,
    plan: Plan,
    progress: LoadProgress | None,
) -> Trunk:
    if plan.dtype != "bf16":
        return ResidentTrunk(read_trunk(checkpoint, _dtype(plan), manifest))
    return StoredTrunk(
        checkpoint,
        reader,
        streamed=frozenset(plan.memory.streamed),
        embedding_on_disk=plan.memory.embedding_on_disk,
        int8=plan.trunk == "int8",
        manifest=manifest,
        progress=_named(progress, "trunk"),
    )


def _named(progress: LoadProgress | None, what: str) -> ReadProgress:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return report


def read_trunk(checkpoint: Checkpoint, dtype: torch.dtype, manifest: Manifest | None = None) -> dict[str, Tensor]:
    """Every trunk tensor by Earthshine's name, in `dtype`; routers and their biases in fp32.

    Where there is a manifest, each tensor's checksum is verified. Raises CheckpointError.
    """
    trunk, ranges = {}, dict(trunk_ranges(checkpoint))
    for tensor in trunk_tensors(checkpoint.spec):
        if manifest is not None:
            manifest.check_stored(tensor.name, ranges[tensor.name])
        value = checkpoint.trunk(tensor.name)
        trunk[tensor.name] = exactly(value, torch.float32 if tensor.in_fp32 else dtype, tensor.name)
    return trunk


def sampling_defaults(folder: Path) -> SamplingParams:
    """`temperature`, `top_p` and `top_k` as generation_config.json recommends them; greedy where it has none.

    Raises CheckpointError for a file that is not a JSON object of at most 1 MiB with sensible numbers there.
    """
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return SamplingParams(temperature=0.0)
    real = resolve_in(folder, path.name, CheckpointError)
    found = parse_object(read_file(real, str(path), _MAX_DEFAULTS_BYTES, CheckpointError), str(path), CheckpointError)
    chosen = {key: found[key] for key in ("temperature", "top_p") if found.get(key) is not None}
    for key, value in chosen.items():
        most = 1 if key == "top_p" else 100
        if type(value) not in (int, float) or not 0 <= value <= most or (key == "top_p" and value == 0):
            raise CheckpointError(f"{path} gives {shown(value)} as {key}; it must be a number up to {most}.")
    top_k = found.get("top_k") or 0
    if type(top_k) is not int or not 0 <= top_k < 1 << 31:
        raise CheckpointError(f"{path} gives {shown(top_k)} as top_k; it must be a whole number, 0 for all tokens.")
    if found.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    temperature = chosen.get("temperature", 1.0 if "top_p" in chosen or top_k else 0.0)
    return SamplingParams(temperature=float(temperature), top_p=float(chosen.get("top_p", 1.0)), top_k=top_k)
