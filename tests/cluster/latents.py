"""Prompts for the engines, and how their latents are compared."""

import itertools
import socket
import statistics

import torch
from torch import Tensor

from .pieces import Latents

PAGES = 256  # tokens of a prompt's whole pages, and two of vLLM's blocks of 128
LENGTH = 300
BOUNDS = (2e-3, 1e-2, 2e-2, 3e-2)  # of the median relative error of a latent, layers 0 to 3
_seeds = itertools.count(1)


def new_prompt(length: int = LENGTH) -> list[int]:
    """Another one in each call, so that no cache has it."""
    generator = torch.Generator().manual_seed(next(_seeds))
    return torch.randint(0, 500, (length,), generator=generator).tolist()


def new_salt() -> str:
    """Of a tenant that has no cache yet."""
    return f"salt {next(_seeds)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def url(port: int) -> str:
    return f"earthshine+plain://127.0.0.1:{port}"


def whole(latents: Latents) -> list[Tensor]:
    assert latents.error is None, latents.error
    return latents.parts


def equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def require_agreement(theirs: list[Tensor], ours: list[Tensor], what: str) -> None:
    """Median over the tokens of the relative error of a latent, in each layer."""
    errors = [
        statistics.median(((a.float() - b.float()).norm(dim=1) / a.float().norm(dim=1)).tolist())
        for a, b in zip(theirs, ours, strict=True)
    ]
    print(what, "median relative errors:", *(f"{error:.1e}" for error in errors))
    assert all(error <= bound for error, bound in zip(errors, BOUNDS, strict=True)), errors
