"""`earthshine doctor`: what this machine offers, and which implementation serves each operation and why."""

import platform
from collections.abc import Iterable
from textwrap import fill

import torch

from earthshine import __version__
from earthshine.errors import EarthshineError
from earthshine.hub import GLEAM
from earthshine.kernels import Implementation, implementations
from earthshine.machine import processors
from earthshine.settings import read_settings
from earthshine.spec import load_spec
from earthshine.units import format_bytes
from earthshine.weights import Checkpoint


def run_doctor() -> None:
    settings = read_settings()
    print(f"earthshine   {__version__}")
    print(f"python       {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"torch        {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"processors   {processors()}")
    print(f"kernels      {settings.kernels} (EARTHSHINE_KERNELS)")
    print(f"cpu          {settings.cpu} (EARTHSHINE_CPU)")
    print(f"downloads    {settings.home or 'the default cache of huggingface_hub'} (EARTHSHINE_HOME)")
    print(f"gleam        {_gleam()}")
    print()
    print_served(implementations())


def print_served(served: Iterable[Implementation]) -> None:
    """Print each implementation with its operations, and the reason why no better one is used."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in served:
        groups.setdefault((one.name, one.reason), []).append(one.operation)
    for (name, reason), operations in groups.items():
        print(fill(f"{name} serves {', '.join(operations)}.", 120, subsequent_indent="  "))
        if reason:
            print(fill(reason, 120, initial_indent="  ", subsequent_indent="  "))


def _gleam() -> str:
    try:
        shares = Checkpoint.open(GLEAM, load_spec(GLEAM)).coverage().shares
    except EarthshineError as error:
        return f"unusable: {error}"
    n_tensors, nbytes = (sum(counts) for counts in zip(*((s.n_tensors, s.nbytes) for s in shares), strict=True))
    return f"{format_bytes(nbytes)} in {n_tensors} tensors"
