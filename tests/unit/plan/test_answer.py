"""The answer before the tables: every figure is one of the forecast, and a no says what is lacking."""

from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.machine import described, read_machine
from earthshine.plan import PlanArgs
from earthshine.plan.answer import PROMPTS, REPLY_TOKENS, Answer, answer
from earthshine.plan.download import Download
from earthshine.plan.explore import Case
from earthshine.plan.prices import Ownership, read_prices

from .made_up import FLAT, GIB, k2_6, machine, made

ROOMY = Download(GIB, 0, Path("/models"), 2 * GIB)
OWN = Ownership(300.0, 0.25, 3500.0, 4.0)
PRICES = read_prices()


def long():
    return made("int4", num_hidden_layers=9, max_position_embeddings=300_000)


def test_every_figure_is_the_forecasts() -> None:
    given, case = answer(long(), FLAT, PlanArgs(batch=3), ROOMY, OWN, PRICES)
    assert case is not None
    context = case.plan.memory.context_tokens
    assert given.runs
    assert given.decode == case.decode(4096)
    assert given.reply_rate == pytest.approx(case.decode(4096).tokens_per_second / 3), "of one of three replies"
    assert given.reply_seconds == pytest.approx(REPLY_TOKENS * case.decode(4096).seconds)
    assert given.budget_bytes == case.plan.memory.budget_bytes
    assert given.output_usd_per_million == OWN.usd_per_million(case.decode(context // 2).tokens_per_second)
    for n_tokens in PROMPTS:
        other = Case.of(long(), FLAT, PlanArgs(given.budget_bytes, n_tokens, 3))
        assert given.waits is not None
        assert given.waits[n_tokens] == other.prompt(n_tokens).seconds
    assert given.best_change == max(case.what_if(), key=lambda change: change[1])


def test_a_prompt_that_does_not_fit_has_no_wait() -> None:
    given, _ = answer(made(), FLAT, PlanArgs(), ROOMY, None, PRICES)
    assert given.waits is not None
    assert (given.waits[4096] is None, given.waits[32_768]) == (False, None)
    assert (given.output_usd_per_million, given.service, given.times_service) == (None, None, None)


def test_the_cost_is_held_against_the_service_that_offers_the_model(shared_data: Path) -> None:
    computer = read_machine(described()["mini-24gb"])
    given, case = answer(k2_6(shared_data), computer, PlanArgs(), ROOMY, OWN, PRICES)
    assert case is not None
    assert given.service is not None
    assert given.service.name == "Kimi K2.6 (Moonshot)"
    assert given.output_usd_per_million is not None
    assert given.times_service == pytest.approx(given.output_usd_per_million / 4.0)


def test_a_disk_that_is_too_small_is_lacking_beside_the_forecast() -> None:
    given, case = answer(long(), FLAT, PlanArgs(), replace(ROOMY, free_bytes=GIB // 2), None, PRICES)
    assert (given.lacks, given.runs) == (("disk",), False)
    assert case is not None
    assert given.decode is not None


def test_too_little_memory_is_an_answer_with_the_least_that_works() -> None:
    least = Case.of(long(), FLAT, PlanArgs(context_tokens=2048)).smallest
    small = machine(memory_bytes=least)
    given, case = answer(long(), small, PlanArgs(), ROOMY, None, PRICES)
    assert case is None
    assert (given.lacks, given.smallest_bytes, given.decode) == (("memory",), least, None)
    busy, _ = answer(long(), FLAT, PlanArgs(), ROOMY, None, PRICES, available_bytes=GIB // 100)
    assert (busy.lacks, busy.free_bytes) == (("memory",), GIB // 100)


def test_a_budget_that_was_asked_for_and_arguments_out_of_range_are_refused() -> None:
    for args in (PlanArgs(1000), PlanArgs(batch=0), PlanArgs(context_tokens=1 << 30), PlanArgs(80 * GIB)):
        with pytest.raises(UsageError):
            answer(long(), FLAT, args, ROOMY, None, PRICES)


def test_hardware_without_kernels_runs_nothing(shared_data: Path) -> None:
    computer = read_machine(described()["8xh200"])
    given, case = answer(k2_6(shared_data), computer, PlanArgs(), ROOMY, None, PRICES)
    assert (given.lacks, given.runs) == (("kernels",), False)
    assert case is not None, "the rates are still shown"


def test_what_is_not_known_has_no_figure() -> None:
    empty = Answer(("memory",), 2, 2048, 1, None, ROOMY)
    assert (empty.reply_seconds, empty.reply_rate, empty.times_service) == (None, 0.0, None)
