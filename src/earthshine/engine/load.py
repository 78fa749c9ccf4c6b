"""From a folder in a published format to a model that sessions can use.

This is where floors meet: the spec says what should be there, the checkpoint yields tensors by Earthshine's names,
and the decoder takes them. All is used in one dtype but for the routers, whose choices fp32 decides.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from earthshine.engine.session import Session
from earthshine.errors import CheckpointError, UsageError
from earthshine.kv import PagePool
from earthshine.models import Decoder
from earthshine.spec import ModelSpec, load_spec, trunk_tensors
from earthshine.untrusted import parse_object, read_file, resolve_in, shown
from earthshine.weights import Checkpoint, StoredExperts, exactly

PAGE_TOKENS = 64
BUDGET_BYTES = 8 * 2**30  # of routed experts kept in memory, at most
_MAX_DEFAULTS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for sessions. `fingerprint` names its weights, so that a saved state of another one is refused."""

    spec: ModelSpec
    decoder: Decoder
    experts: StoredExperts
    fingerprint: str

    def session(self, context_tokens: int | None = None) -> Session:
        """An empty session with pages of its own for `context_tokens`, by default the model's whole context.

        Raises UsageError for a context that the model does not have and ContextError where memory does not suffice.
        """
        spec = self.spec
        wanted = spec.max_context if context_tokens is None else context_tokens
        if not 1 <= wanted <= spec.max_context:
            raise UsageError(f"A context of {wanted} tokens is not possible; this model takes 1 to {spec.max_context}.")
        pages = -(-wanted // PAGE_TOKENS)
        pool = PagePool(spec.n_layers, spec.latent_dim, PAGE_TOKENS, pages, self.decoder.dtype)
        return Session(self.decoder, pool, fingerprint=self.fingerprint, context_tokens=wanted)


def load_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16, budget_bytes: int = BUDGET_BYTES) -> LoadedModel:
    """Open the checkpoint in `folder`, read its trunk into memory, and leave its routed experts on disk.

    `dtype`: of activations, bf16 as the models are published, or fp32. `budget_bytes`: of experts kept in memory.
    Raises SpecError, Unsupported and CheckpointError for what is wrong with the files.
    """
    spec = load_spec(folder)
    checkpoint = Checkpoint.open(folder, spec)
    experts = StoredExperts(checkpoint, dtype=dtype, budget_bytes=budget_bytes)
    decoder = Decoder(spec, read_trunk(checkpoint, dtype), experts)
    return LoadedModel(spec, decoder, experts, checkpoint.fingerprint())


def read_trunk(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every trunk tensor by Earthshine's name, in `dtype` but for the routers and their biases, which are fp32."""
    trunk = {}
    for tensor in trunk_tensors(checkpoint.spec):
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
