"""Profiles made from plan's forecast, and what borrowing another machine's prefill gives by them."""

from dataclasses import replace

import pytest

from earthshine.errors import UsageError
from earthshine.machine import described, read_machine
from earthshine.plan import PlanArgs
from earthshine.plan.explore import Case
from earthshine.plan.forecast import Load
from earthshine.prfaas.borrow import borrowing, fleet_of
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.fleet import fleet_json, read_fleet
from earthshine.prfaas.forecast import cache_curve, forecast_profile
from earthshine.spec import load_spec


@pytest.fixture(scope="module")
def case(shared_data):
    spec = load_spec(shared_data / "configs" / "moonshotai--Kimi-K2.6_config.json")

    def make(machine, **args):
        return Case.of(spec, read_machine(described()[machine]), PlanArgs(**args))

    return make


@pytest.fixture(scope="module")
def profiles(case):
    return {name: forecast_profile(case(name), 131072, 12.0) for name in ("mini-24gb", "desktop-128gb", "8xh200")}


def test_profile_has_the_forecasts_of_plan_between_its_points_too(case, profiles):
    plan = case("desktop-128gb").with_context(131072)
    for tokens in (1, 700, 5000, 11111, 48000, 100000, 131072):
        assert profiles["desktop-128gb"].prefill_seconds(tokens) == pytest.approx(plan.prompt(tokens).seconds, rel=0.02)
    assert profiles["desktop-128gb"].cache_bytes(131072) == 131072 * 70272


def test_decode_steps_are_forecast_for_every_batch(case):
    made = case("server-768gb", batch=6, context_tokens=8192)
    found = forecast_profile(made, 8192, 1.0)
    assert [size for size, _ in found.decode.points] == [1, 2, 4, 6]
    assert found.decode(6) == pytest.approx(made.costs().decode(Load(4096, 6)).seconds)
    assert found.requests_per_second(100) == pytest.approx(6 / (100 * found.decode(6)))


def test_prompt_that_does_not_fit_is_refused(case):
    with pytest.raises(UsageError, match=r"does not fit .* memory"):
        forecast_profile(case("mini-24gb", memory_bytes=12 << 30), 262144, 1.0)


def test_cache_of_one_token_has_a_curve(case):
    curve, _ = cache_curve(case("mini-24gb").spec, 1)
    assert [curve(1), curve(10)] == [70272, 702720]


def test_fleet_of_a_forecast_is_read_back_from_its_file(profiles, tmp_path):
    fleet = fleet_of(profiles["mini-24gb"], profiles["8xh200"], 1.25e8)
    (tmp_path / "fleet.json").write_text(fleet_json(fleet))
    assert read_fleet(tmp_path / "fleet.json") == fleet


def test_lender_of_the_same_kind_keeps_its_own_price_in_the_file(profiles, tmp_path):
    mine = profiles["mini-24gb"]
    fleet = fleet_of(mine, replace(mine, usd_per_hour=3.0), 1.25e8)
    (tmp_path / "fleet.json").write_text(fleet_json(fleet))
    clusters = read_fleet(tmp_path / "fleet.json").clusters
    assert {name: c.profile.usd_per_hour for name, c in clusters.items()} == {"here": 12.0, "there": 3.0}


def test_cache_of_a_long_prompt_takes_the_links_time(profiles):
    found = borrowing(profiles["mini-24gb"], profiles["8xh200"], 0.1e9 / 8, 131072, 131072)
    assert found.remote
    assert found.bound == "the link"
    wire = 131072 * 70272 / (0.1e9 / 8)
    assert found.there_seconds == pytest.approx(wire + found.first_step)
    assert found.usd_held == pytest.approx(12 / 3600 * wire)
    assert found.usd_there == pytest.approx(12 / 3600 * found.there_prefill)
    assert found.here_seconds > 60 * found.there_seconds
    assert "prefills 131072 of 131072 tokens for here" in found.reason


def test_a_faster_machine_computes_short_prompts_itself(profiles):
    """On a link of 10 kB/s every token's cache takes seven seconds."""
    slow = borrowing(profiles["desktop-128gb"], profiles["8xh200"], 1e4, 8192, 131072)
    assert not slow.remote
    assert slow.bound == "prefill here"
    assert slow.break_even is None
    assert slow.usd_per_hour_saved is None


def test_break_even_is_where_both_ways_take_the_same_time(profiles):
    here, there = profiles["desktop-128gb"], profiles["8xh200"]
    rate = 131072 * 70272 / here.prefill_seconds(65536)  # the link takes as long as half of the longest prompt
    at = borrowing(here, there, rate, 8192, 131072).break_even
    assert 8192 < at < 131072
    assert not borrowing(here, there, rate, at - 1, 131072).remote
    assert borrowing(here, there, rate, at, 131072).remote
    dear = replace(there, usd_per_hour=1e5)
    assert borrowing(here, dear, rate, at, 131072).break_even == at


def test_cost_of_a_machine_without_a_price_is_unknown(profiles):
    here = replace(profiles["desktop-128gb"], usd_per_hour=0.0)
    assert borrowing(here, profiles["8xh200"], 1e9, 8192, 8192).usd_here is None


def test_break_even_is_exact_where_the_other_machine_is_not_always_sooner_above_it(profiles):
    """The other machine is sooner up to about 2,860 tokens and again from about 4,110 on."""
    here = ((1.0, 9.0), (2400.0, 10.0), (3000.0, 10.5), (4000.0, 11.0), (5000.0, 30.0), (10000.0, 100.0))
    there = ((1.0, 4.0), (2400.0, 5.0), (3000.0, 12.0), (4000.0, 13.0), (5000.0, 14.0), (10000.0, 20.0))
    near = replace(profiles["mini-24gb"], prefill=Curve(here))
    far = replace(profiles["8xh200"], prefill=Curve(there))
    last = max(n for n in range(3000, 5000) if near.prefill_seconds(n) <= far.prefill_seconds(n))
    assert borrowing(near, far, 1e15, 5000, 10000).break_even == last + 1
