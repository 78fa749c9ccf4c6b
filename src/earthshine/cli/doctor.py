"""`earthshine doctor`: what this machine offers, and which implementation serves each operation and why."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from earthshine import __version__
from earthshine.cli.layout import Report
from earthshine.cli.words import plain
from earthshine.errors import EarthshineError
from earthshine.hub import GLEAM
from earthshine.kernels import Implementation, implementations
from earthshine.machine import own_machine, processors
from earthshine.settings import Settings, read_settings
from earthshine.spec import load_spec
from earthshine.units import format_bytes
from earthshine.weights import Checkpoint

_UNUSABLE = "unusable"


def run_doctor() -> None:
    settings, served, report = read_settings(), implementations(), Report()
    checked = {"profile": _profile(settings), "gleam": _gleam()}
    report.heading(_summary(served, [name for name, text in checked.items() if text.startswith(_UNUSABLE)]))
    report.blank()
    report.facts(
        (
            ("earthshine", __version__),
            ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
            ("processors", str(processors())),
            ("kernels", f"{settings.kernels} (EARTHSHINE_KERNELS)"),
            ("cpu", f"{settings.cpu} (EARTHSHINE_CPU)"),
            ("profile", checked["profile"]),
            ("downloads", f"{plain(settings.downloads)} (EARTHSHINE_HOME)"),
            ("gleam", checked["gleam"]),
        )
    )
    report.blank()
    print_served(served, report)


def _summary(served: Sequence[Implementation], unusable: Sequence[str]) -> str:
    """Whether most operations have the best kernels for this processor, and which of the listed parts are unusable."""
    (name, reason), count = Counter((one.name, one.reason) for one in served).most_common(1)[0]
    share = f"{count} of {len(served)} operations"
    if not name.startswith("native"):
        summary = f"Slow: {name} serves {share} instead of native kernels; the reason is below."
    elif reason:
        summary = f"Works, but the best kernels are not in use: {name} serves {share}."
    else:
        state = "Not all is well" if unusable else "All is well"
        summary = f"{state}: {name}, the best kernels for this processor, serves {share}."
    return f"{summary} Unusable: {', '.join(unusable)}; see below." if unusable else summary


def print_served(served: Iterable[Implementation], report: Report) -> None:
    """Print each implementation with its operations, and each reason why no better one is used once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in served:
        groups.setdefault((one.name, one.reason), []).append(one.operation)
    reasons: set[str] = set()
    for (name, reason), operations in groups.items():
        report.paragraph(f"{name} serves {', '.join(operations)}.")
        if reason and reason not in reasons:
            report.note(reason)
        reasons.add(reason)


def _profile(settings: Settings) -> str:
    """What `plan` knows of this machine's speed."""
    try:
        own = own_machine(settings.profile)
    except EarthshineError as error:
        return f"{_UNUSABLE}: {error}"
    return f"measured on {own.measured}" if own is not None else "none; earthshine bench machine measures this machine"


def _gleam() -> str:
    try:
        shares = Checkpoint.open(GLEAM, load_spec(GLEAM)).coverage().shares
    except EarthshineError as error:
        return f"{_UNUSABLE}: {error}"
    n_tensors, nbytes = (sum(counts) for counts in zip(*((s.n_tensors, s.nbytes) for s in shares), strict=True))
    return f"{format_bytes(nbytes)} in {n_tensors} tensors"
