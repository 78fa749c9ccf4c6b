"""The choice of a place from what the router sent and what finished."""

import json
import math
import zlib

import pytest

from earthshine.errors import UnavailableError, UsageError
from earthshine.prfaas.router.blocks import blocks_of
from earthshine.prfaas.router.live import LiveFleet, Prompt
from earthshine.prfaas.router.setup import RouterSetup, place_from, read_setup


def fleet_of(*names: str, prefill: tuple[str, ...] = (), **more) -> LiveFleet:
    decode = tuple(place_from(f"{name}=http://127.0.0.1:{at}") for at, name in enumerate(names, 9000))
    lenders = tuple(place_from(f"{name}=earthshine://127.0.0.1:7000", prefill=True) for name in prefill)
    return LiveFleet(RouterSetup(decode, lenders, **more))


def prompt(text: str = "word " * 2000, **more) -> Prompt:
    data = text.encode()
    return Prompt(blocks_of(data, b""), len(data), zlib.crc32(data[:50]), **{"streamed": True, **more})


def test_requests_are_divided_by_the_work_that_is_left():
    fleet, at = fleet_of("a", "b", "c"), {}
    for number in range(12):
        choice = fleet.choose(each := prompt(f"{number} " * 3000), 0.0)
        fleet.begin(choice, each, 0.0)
        at[choice.place.name] = at.get(choice.place.name, 0) + 1
    assert at == {"a": 4, "b": 4, "c": 4}


def test_a_place_with_a_long_prompt_gets_no_short_ones_until_that_is_done():
    fleet = fleet_of("a", "b")
    long = prompt("long " * 100_000)
    choice = fleet.choose(long, 0.0)
    ticket = fleet.begin(choice, long, 0.0)
    others = []
    for number in range(6):
        each = prompt(f"short {number}")
        others.append(fleet.choose(each, 1.0))
        fleet.begin(others[-1], each, 1.0)
    assert {other.place.name for other in others} == {"a", "b"} - {choice.place.name}
    fleet.first(ticket, 2.0)
    assert choice.place.wait_seconds(2.0) == 0
    fleet.end(ticket, 3.0, served=True)
    assert (choice.place.sequences, choice.place.served) == (0, 1)


def test_an_unstreamed_prompt_counts_for_as_long_as_it_was_estimated_to_take():
    fleet = fleet_of("a")
    each = prompt(streamed=False)
    choice = fleet.choose(each, 0.0)
    fleet.begin(choice, each, 0.0)
    fleet.begin(choice, each, 0.0)
    seconds = choice.prefill_seconds
    assert choice.place.wait_seconds(0.0) == pytest.approx(2 * seconds)
    assert choice.place.wait_seconds(1.5 * seconds) == pytest.approx(0.5 * seconds)
    assert choice.place.wait_seconds(9 * seconds) == 0


def test_a_prompt_goes_back_to_its_prefix_unless_much_waits_there():
    fleet = fleet_of("a", "b", "c")
    first = prompt("history " * 5000)
    choice = fleet.choose(first, 0.0)
    fleet.end(fleet.begin(choice, first, 0.0), 1.0, served=True)
    longer = prompt("history " * 5000 + "and what else? " * 20)
    again = fleet.choose(longer, 2.0)
    assert again.place is choice.place
    assert again.reused > 0.8 * again.tokens
    for number in range(5):
        other = prompt(f"{number} " * 50_000)
        fleet.begin(fleet.choose(other, 2.0, {name for name in "abc" if name != choice.place.name}), other, 2.0)
    assert fleet.choose(longer, 2.0).place is not choice.place


def test_a_place_that_turned_out_slow_is_used_less():
    fleet, at, now = fleet_of("a", "b"), {"a": 0, "b": 0}, 0.0
    for number in range(42):
        each = prompt(f"{number} " * 2000)
        choice = fleet.choose(each, now, {"b"} if number < 2 else ())
        ticket = fleet.begin(choice, each, now)
        at[choice.place.name] += 1
        now += 10.0 if choice.place.name == "a" else 0.5
        fleet.first(ticket, now)
        fleet.end(ticket, now, served=True)
    assert at == {"a": 2, "b": 40}


def test_a_lender_is_tried_where_prompts_wait_and_used_again_if_it_is_faster():
    fleet, lent, now = fleet_of("a", prefill=("big",)), 0, 0.0
    for number in range(20):
        each = prompt(f"{number} " * 5000)
        choice = fleet.choose(each, now)
        ticket = fleet.begin(choice, each, now)
        lent += choice.lender is not None
        now += 0.5 if choice.lender else 20.0
        fleet.first(ticket, now)
        fleet.end(ticket, now, served=True)
    assert lent > 10


def test_what_a_link_still_has_to_send_is_what_was_lent_and_has_no_first_token():
    fleet = fleet_of("a", prefill=("big",))
    each = prompt()
    choice = fleet.choose(each, 0.0)
    lent = type(choice)(choice.place, fleet.places["big"], "", 10, 0, 1.0, 1.0, 1e9)
    one, other = fleet.begin(lent, each, 0.0), fleet.begin(lent, each, 0.0)
    assert fleet.links["big", "a"].queued_bytes == 2e9
    fleet.first(one, 1.0)
    fleet.end(other, 1.0, served=False)
    fleet.end(one, 1.0, served=True)
    assert fleet.links["big", "a"].queued_bytes == 0
    assert not fleet.places["big"].work


def test_the_threshold_is_solved_where_something_can_be_lent():
    assert fleet_of("a").threshold == math.inf
    assert fleet_of("a", prefill=("big",), threshold=5000.0).threshold == 5000
    fleet = fleet_of("a", prefill=("big",))
    assert 0 < fleet.threshold < math.inf
    assert fleet.controller is not None
    fleet.tick(30.0)
    crowd = fleet_of(*"abcdefghi", prefill=("big",))
    assert (crowd.threshold, crowd.controller) == (math.inf, None)
    assert "too many" in crowd.why


def test_no_place_is_said_with_the_reason_of_each():
    fleet = fleet_of("a", "b")
    fleet.places["a"].circuit.probed("says no", certain=True)
    with pytest.raises(UnavailableError, match=r"a says no; b failed"):
        fleet.choose(prompt(), 0.0, {"b"})


def test_what_is_remembered_of_conversations_is_bounded():
    fleet = fleet_of("a", "b")
    for number in range(10_000):
        fleet.remember(str(number), "b")
    assert len(fleet._conversations) == 4096
    assert fleet.choose(Prompt(), 0.0, near="9999").place.name == "b"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"format": "other"}, "its format must be"),
        ({"decode": []}, "no place that decodes"),
        ({"decode": "http://a"}, "must be a list of objects"),
        ({"decode": [{"url": "http://a:1", "color": 1}]}, "'color', which is not known"),
        ({"decode": [{"name": "x"}]}, "lacks url"),
        ({"decode": [{"url": "http://a:1", "name": "a b"}]}, "name must be up to 64"),
        ({"decode": [{"url": "http://a:1"}] * 2}, "Two places have the name 'a:1'"),
        ({"decode": [{"url": "http://a:1", "batch": 0}]}, "batch is 0"),
        ({"decode": [{"url": "http://a:1", "drain": "yes"}]}, "drain is 'yes'"),
        ({"decode": [{"url": "http://a:1", "health": "no path"}]}, "health must be a path"),
        ({"decode": [{"url": "http://a:1", "key_file": "missing"}]}, "missing"),
        ({"decode": [{"url": "http://a:1"}], "deadline_seconds": 0}, "deadline_seconds is 0"),
        ({"decode": [{"url": "http://a:1"}], "fleet": "missing.json"}, "missing.json"),
        ({"decode": [{"url": "http://a:1"}], "colour": 1}, "'colour', which is not known"),
        ({"decode": [{"url": f"http://a:{n}"} for n in range(1, 70)]}, "more than 64 places"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_entry(tmp_path, found, says):
    path = tmp_path / "route.json"
    path.write_text(json.dumps({"format": "earthshine route 1", **found}))
    with pytest.raises(UsageError, match=says):
        read_setup(path)


def test_a_place_is_called_by_its_name_or_its_host_and_port():
    assert place_from("http://host:80/v1").name == "host:80"
    assert place_from("big=http://host:80").name == "big"
    assert place_from("http://host:80/a=b").name == "host:80"
    assert place_from("earthshine://host:7000", prefill=True).name == "host:7000"
    assert place_from("http://[::1]:80").name == "[::1]:80"
