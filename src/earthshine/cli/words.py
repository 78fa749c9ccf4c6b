"""Quantities and names as a person reads them: sizes, rates, amounts of money, paths."""

import math

from earthshine.units import format_bytes, three_digits

SERVE_BATCH = 8  # the most sequences that serve decodes together, if --batch does not say
KWH_USD, LIFE_YEARS = 0.25, 4.0  # of a machine whose costs are not given


def plain(text: object) -> str:
    """A name or a path as a person wrote it; escaped if a terminal could take any of it for a control sequence."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def count_in_words(parameters: int) -> str:
    """2.58 billion."""
    for least, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if parameters >= least:
            return f"{parameters / least:.3g} {name}"
    return f"{parameters:,}"


def parameters_in_words(total: int, active: int, noun: str = "") -> str:
    """1.03 trillion, 32.9 billion used per token; `noun` follows the first number."""
    return f"{count_in_words(total)}{noun}, {count_in_words(active)} used per token"


def least_size(nbytes: int) -> str:
    """The size in GiB, rounded up to a hundredth, as `--memory` takes it."""
    return f"{math.ceil(nbytes / 2**30 * 100) / 100:.2f} GiB"


def size(nbytes: float) -> str:
    """A size to three digits: 553 GiB."""
    return three_digits(format_bytes(nbytes))


def dollars(usd: float) -> str:
    """An amount to the cent; below 10 cents to two digits, since small models cost less than a cent."""
    return f"{usd:.2f}" if usd >= 0.1 or usd == 0 else f"{usd:.{1 - math.floor(math.log10(usd))}f}"


def rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}" if rate >= 0.1 else f"{rate:.2g}"
