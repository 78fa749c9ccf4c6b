"""`earthshine prfaas simulate`: the answer, its JSON and picture, and what is refused."""

import importlib.util
import json
import re

import pytest

pytestmark = pytest.mark.usefixtures("no_profile")
RUN = ("prfaas", "simulate", "--seconds", "20", "--seed", "3")


def test_answer_comes_first_and_a_row_for_each_policy(earthshine):
    code, out, err = earthshine(*RUN)
    assert (code, err) == (0, "")
    first = out.replace("\n", " ")
    assert re.match(r"Within \d+\.\d s, \d+\.\d% of first tokens come: \d\.\d\d times as many", first)
    for policy in (
        "earthshine",
        "best static threshold",
        "paper, frozen",
        "exo's constant",
        "all remote",
        "local only",
    ):
        assert re.search(rf"^{policy}\b", out, re.MULTILINE)
    assert "steady: " in out


def test_json_has_every_figure_and_a_picture_is_drawn_beside_it(earthshine, tmp_path):
    picture = tmp_path / "policies.png"
    plot = ("--plot", str(picture)) if importlib.util.find_spec("matplotlib") else ()  # which is optional
    code, out, err = earthshine(*RUN, "--json", *plot)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["requests"] > 25
    policies = {row["policy"]: row for row in found["policies"]}
    for name, row in policies.items():
        assert row["share_in_time"] == pytest.approx(row["in_time"] / found["requests"])
        assert row["in_time"] <= policies["bound"]["in_time"] + 1e-6
        assert name == "bound" or set(row["first_token_seconds"]) == {"p50", "p90", "p99", "mean"}
    assert not plot or picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--scenario", "moon"), "not a scenario; choose one of steady, burst"),
        (("--scenario", "prefix"), "needs a trace"),
        (("--seconds", "0"), "lasts 1 to"),
        (("--trace", "any.jsonl"), "scenario steady draws its requests"),
        (("--scenario", "wave", "--link", "1"), "leave out --link"),
        (("--seconds", "1000000"), "a comparison takes at most"),
        (("paper-naive", "--link", "0"), "serves 0 requests per second, too few to simulate"),
        (("--plot", "picture.txt"), "must end in one of .png"),
        (("moon",), "neither a file nor a known fleet"),
        (("--scenario", "prefix", "--trace", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_can_not_be_simulated_is_refused(earthshine, options, problem):
    code, out, err = earthshine("prfaas", "simulate", *options)
    assert (code, out) == (2, "")
    assert problem in err.replace("\n", " ")
