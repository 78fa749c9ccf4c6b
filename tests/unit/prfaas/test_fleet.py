"""Readers of curves, profiles and fleets: what they read, what they refuse by name, and hostile files."""

import copy
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import UsageError
from earthshine.prfaas.curve import Curve, read_curve
from earthshine.prfaas.fleet import fleet_json, read_fleet, shipped_fleets
from earthshine.prfaas.profile import profile_fields, profile_from
from earthshine.prfaas.solve import solve
from earthshine.prfaas.workload import PAPER_LENGTHS

from .fleets import fleet_of, made_up, shipped

FLEET = json.loads(shipped_fleets()["paper"].read_text())
NOT_NUMBERS = (-1, 0, "5", None, True, [1], 1e19)


def _read(tmp_path, found):
    path = tmp_path / "fleet.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return read_fleet(path)


def _changed(*path, value):
    found = copy.deepcopy(FLEET)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return found


def test_curve_is_linear_between_points_and_goes_on_beyond():
    curve = Curve(((10, 1.0), (20, 3.0), (40, 4.0)))
    assert [curve(size) for size in (10, 15, 20, 30, 40, 60)] == pytest.approx([1, 2, 3, 3.5, 4, 5])
    assert curve(8) == pytest.approx(0.6)
    assert curve(0) == 0, "never negative"
    assert Curve(((5, 2.0),))(1e6) == 2


@pytest.mark.parametrize(
    "points", [(), ((1, 2), (1, 2)), ((2, 1), (1, 2)), ((1, 5), (2, 4)), ((1, math.nan),), ((1, 1), (math.inf, 2))]
)
def test_curve_of_impossible_points_is_refused(points):
    with pytest.raises(UsageError, match="A curve needs points"):
        Curve(points)


def test_prefill_curves_that_end_before_a_length_are_named_with_their_ends():
    fleet = shipped("paper")
    assert fleet.extrapolated(131072) == {}
    assert set(fleet.extrapolated(131073).values()) == {131072}
    decodes = made_up("d", (1, 2, 3), 0, 1)
    assert fleet_of(made_up("p", (1, 2, 3), 1), decodes).extrapolated(200000) == {"p": 100000}


def test_part_of_a_curve_pays_what_does_not_grow_again():
    curve = Curve(((1, 6.0), (101, 106.0)))
    assert curve.between(0, 50) == curve(50)
    assert curve.between(30, 50) == pytest.approx(20 + curve(0))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "must be a list of 1 to 1000 pairs"),
        ({"1": 2}, "must be a list of 1 to 1000 pairs"),
        ([[1, 2], 3], "pair 2, 3, must be two numbers"),
        ([[1, 2], [3]], "pair 2, [3], must be two numbers"),
        *(([[1, bad]], "pair 1") for bad in NOT_NUMBERS),
        *(([[bad, 1]], "pair 1") for bad in NOT_NUMBERS),
        ([[1, 1e17]], "pair 1, [1, 1e+17], must have seconds from 1e-05 to 1e+08"),
        ([[1, 1e-9]], "pair 1, [1, 1e-09], must have seconds from 1e-05 to 1e+08"),
        ([[1e10, 1]], "must have tokens from 1 to 1e+09"),
        ([[2, 1], [2, 3]], "must have more tokens than the pair before it"),
        ([[2, 1], [1, 3]], "must have more tokens than the pair before it"),
        ([[1, 5], [2, 4]], "must have at least the seconds of the pair before it"),
    ],
)
def test_impossible_curves_are_refused_by_their_pair(value, said):
    with pytest.raises(UsageError) as error:
        read_curve("fleet: prefill", value, "tokens", "seconds")
    assert str(error.value).startswith("fleet: prefill")
    assert said in str(error.value)


@pytest.mark.parametrize("name", list(shipped_fleets()))
def test_shipped_fleets_are_read_and_written_back(name, tmp_path):
    fleet = shipped(name)
    assert _read(tmp_path, fleet_json(fleet)) == fleet
    for cluster in fleet.clusters.values():
        assert profile_from(profile_fields(cluster.profile), "x") == cluster.profile


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), "earthshine fleet 2", "its format must be 'earthshine fleet 1'"),
        (("profiles",), None, "lacks profiles"),
        (("colour",), "red", "has 'colour', which is not known"),
        (("clusters",), {}, "clusters must be a list of 1 to 64 objects"),
        (("clusters",), [], "clusters must be a list of 1 to 64 objects"),
        (("profiles",), [], "profiles must be a list of 1 to 64 objects"),
        (("clusters",), [{}] * 65, "clusters must be a list of 1 to 64 objects"),
        (("profiles",), [{}] * 65, "profiles must be a list of 1 to 64 objects"),
        (("links",), [{}] * 4097, "links must be a list of 0 to 4096 objects"),
        (("links",), [3], "links must be a list of 0 to"),
        (("profiles", 0, "cache"), None, "profile 1 lacks cache"),
        (("profiles", 0, "prefill"), [[1, -1]], "profile 1: prefill: pair 1, [1, -1]"),
        (("profiles", 0, "usd_per_hour"), -1, "usd_per_hour is -1; it must be a number from 0"),
        (("profiles", 0, "recurrent"), 1, "recurrent is 1; it must be true or false"),
        (("profiles", 0, "name"), "8xH20", "two profiles have the name '8xH20'"),
        (("profiles", 0, "name"), "\x1b[2J", "it must be a line of text"),
        (("profiles", 1, "batch"), None, "has decode, so it must have batch"),
        (("profiles", 1, "batch"), 2.5, "batch is 2.5; it must be a whole number from 1"),
        (("clusters", 0, "profile"), "8xB200", "profile is '8xB200'; it must be one of '8xH200', '8xH20'"),
        (("clusters", 0, "n_decode"), 2, "n_decode is 2, but '8xH200' has no decode curve"),
        (("clusters", 0, "n_prefill"), 0, "must have n_prefill, n_decode or both"),
        (("clusters", 0, "n_prefill"), -4, "n_prefill is -4; it must be a whole number from 0 to 1048576"),
        (("clusters", 0, "convertible"), True, "is convertible, so '8xH200' must have both prefill and decode"),
        (("clusters", 0, "name"), "pd", "two clusters have the name 'pd'"),
        (("links", 0, "target"), "moon", "target is 'moon'; it must be one of 'prfaas', 'pd'"),
        (("links", 0, "target"), "prfaas", "leads from 'prfaas' to itself"),
        (("links", 0, "bytes_per_second"), -1, "bytes_per_second is -1; it must be a number from 0"),
        (("links", 0, "round_trip_seconds"), 61, "round_trip_seconds is 61; it must be a number from 0 to 60"),
    ],
)
def test_wrong_entries_are_named(path, value, said, tmp_path):
    with pytest.raises(UsageError) as error:
        _read(tmp_path, _changed(*path, value=value))
    assert said in str(error.value)
    assert "fleet.json" in str(error.value)


def test_fleet_with_two_profiles_of_one_name_is_not_written():
    one, two = made_up("a", (1, 2, 3), 1), made_up("b", (1, 2, 3), 0, 2)
    with pytest.raises(UsageError, match="profiles have the name 'a'"):
        fleet_json(fleet_of(one, replace(two, profile=replace(two.profile, name="a"))))


def test_second_link_of_the_same_ends_is_refused(tmp_path):
    with pytest.raises(UsageError, match="two links lead from 'prfaas' to 'pd'"):
        _read(tmp_path, _changed("links", value=FLEET["links"] * 2))


def test_fleet_that_can_serve_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no cluster that decodes"):
        _read(tmp_path, _changed("clusters", value=FLEET["clusters"][:1]) | {"links": []})
    apart = copy.deepcopy(FLEET) | {"links": []}
    apart["clusters"][1] |= {"n_prefill": 0, "convertible": False}
    with pytest.raises(UsageError, match="no cluster that prefills has a link to one that decodes"):
        _read(tmp_path, apart)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', '{"format": 1, "format": 2}', "[" * 10000])
def test_files_that_are_no_fleet_are_refused(text, tmp_path):
    with pytest.raises(UsageError):
        _read(tmp_path, text)


def test_absent_file_and_a_loop_of_links_are_named(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name in ("absent", "loop"):
        with pytest.raises(UsageError, match=rf"{name}\.json' can't be opened"):
            read_fleet(tmp_path / f"{name}.json")


def test_clusters_that_could_prefill_or_decode_are_those_with_instances_and_convertible_ones():
    fleet = fleet_of(
        made_up("a", (1, 2, 3), 1), made_up("b", (1, 2, 3), 0, 2), made_up("c", (1, 2, 3), 0, 1, 1.0, True)
    )
    assert [c.name for c in fleet.prefilling] == ["a", "c"]
    assert [c.name for c in fleet.decoding] == ["b", "c"]


WRONG = (None, -1, 0, 1e-12, 1e15, 1e300, 2**70, "", "pd", [], {}, True, [[1, 1]], [[1, 1e-12], [2, 1e18]])


def _mutated(draw):
    """The paper's fleet, of which something is exchanged up to three times."""
    found = copy.deepcopy(FLEET)
    for _ in range(draw.randint(1, 3)):
        inner = found
        while inner:
            key = draw.choice(list(inner) if isinstance(inner, dict) else list(range(len(inner))))
            if not isinstance(inner[key], dict | list) or draw.random() < 0.2:
                inner[key] = copy.deepcopy(draw.choice((*WRONG, inner)))
                break
            inner = inner[key]
    return found


@given(st.integers(0, 2**32))
def test_mutated_files_are_refused_or_solved(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("fuzz") / "fleet.json"
    path.write_text(json.dumps(_mutated(random.Random(seed))))
    try:
        fleet = read_fleet(path)
    except UsageError:
        return
    found = solve(fleet, PAPER_LENGTHS, 1024)
    assert 0 <= found.rate < math.inf
    assert sum(stage.share for stage in found.stages) == pytest.approx(1)
