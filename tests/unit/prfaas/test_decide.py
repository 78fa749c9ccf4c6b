"""`decide`: what each reading of the state changes, and what holds for any request in any state."""

import copy
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import UnavailableError, UsageError
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.predict import options
from earthshine.prfaas.route import LATE, ORDINARY, Cached, ClusterState, FleetState, LinkState, Route, RouteRequest

from .fleets import paper_fleet
from .simulated import profile, two_clusters

POLICY = Policy()
PAPER_THRESHOLD = 19400
WORKED_EXAMPLE = RouteRequest(30000, {"pd": Cached(10000, (10000,)), "prfaas": Cached(25000, (25000,))})


def busy(state: FleetState, waiting: int = 1000, seconds: float = 100) -> FleetState:
    """Equal queues everywhere."""
    for cluster in state.clusters.values():
        cluster.prefill_depth, cluster.prefill_wait_seconds = waiting, seconds
    return state


def paper_state() -> FleetState:
    fleet = paper_fleet()
    back = Link("pd", "prfaas", 12.5e9)
    return FleetState.idle(Fleet(fleet.clusters, fleet.links | {("pd", "prfaas"): back}), PAPER_THRESHOLD)


def near_and_far(far_wait: float = 0, near_wait: float = 0) -> FleetState:
    """Prefill takes 0.1 s per 1,000 tokens far and 0.3 s near, and the link next to nothing."""
    state = FleetState.idle(two_clusters(), 10000)
    state.clusters["far"].prefill_wait_seconds, state.clusters["near"].prefill_wait_seconds = far_wait, near_wait
    return state


class TestThreshold:
    @pytest.mark.parametrize("tokens", [500, 5000, 15000, 18500, 20500, 30000, 60000, 130000])
    def test_saturated_fleet_divides_prompts_at_the_threshold(self, tokens):
        route = decide(RouteRequest(tokens), busy(paper_state()), POLICY)
        assert route.prefill == ("prfaas" if tokens > PAPER_THRESHOLD else "pd")

    @pytest.mark.parametrize("tokens", [500, 5000, 15000, 60000, 130000])
    def test_idle_fleet_minimises_the_first_token(self, tokens):
        state, request = paper_state(), RouteRequest(tokens)
        totals = [option.total for option in options(request, state, POLICY)]
        assert len(totals) == 2
        assert decide(request, state, POLICY).first_token.total == min(totals)

    def test_infinite_threshold_is_one_that_no_prompt_reaches(self):
        state = busy(paper_state())
        state.threshold = math.inf
        assert decide(RouteRequest(60000), state, POLICY).prefill == "pd"


class TestPrefixes:
    @pytest.mark.parametrize(
        ("rule", "prefill", "reused", "pulled"),
        [("scarce", "prfaas", 25000, False), ("abundant", "pd", 25000, True), ("auto", "pd", 25000, True)],
    )
    def test_worked_example_of_the_paper_on_a_busy_fleet(self, rule, prefill, reused, pulled):
        route = decide(WORKED_EXAMPLE, busy(paper_state()), Policy(rule))
        assert (route.prefill, route.reused_tokens, route.pull is not None) == (prefill, reused, pulled)
        if route.pull is not None:
            assert (route.pull.source, route.pull.target, route.pull.tokens) == ("prfaas", "pd", 25000)
            cache = paper_fleet().clusters["pd"].profile.cache
            assert route.pull.nbytes == cache(25000) - cache(10000) + cache(0)

    def test_auto_pulls_nothing_over_a_link_that_takes_longer_than_the_prefill_it_saves(self):
        state = busy(paper_state())
        state.links["prfaas", "pd"].queued_bytes = 10 * 12.5e9
        assert decide(WORKED_EXAMPLE, state, Policy("auto")).pull is None

    def test_recurrent_model_reuses_only_the_length_of_a_state(self):
        request = RouteRequest(30000, {"prfaas": Cached(25000, (8000, 26000))})
        route = decide(request, paper_state(), Policy("scarce"))
        assert (route.prefill, route.reused_tokens) == ("prfaas", 8000)

    @pytest.mark.parametrize(("recurrent", "reused"), [(False, 9999), (True, 9000)])
    def test_last_token_is_computed_even_if_all_are_cached(self, recurrent, reused):
        state = FleetState.idle(two_clusters(recurrent=recurrent), 10000)
        route = decide(RouteRequest(10000, {"near": Cached(10000, (9000, 10000))}), state, Policy("scarce"))
        assert (route.prefill, route.reused_tokens) == ("near", reused)

    def test_only_what_the_decoding_cluster_lacks_is_sent(self):
        route = decide(RouteRequest(20000, {"near": Cached(5000)}), near_and_far(), Policy("scarce"))
        assert route.send is not None
        assert route.send.nbytes == pytest.approx(15000 * 900 + 100000)


class TestLink:
    def test_slow_link_keeps_a_prompt_local_and_says_how_much_sooner_that_is(self):
        state = near_and_far()
        state.links["far", "near"].bytes_per_second = 1e6
        route = decide(RouteRequest(10000), state, POLICY)
        assert route.prefill == "near"
        assert "sooner" in route.reason

    def test_queued_bytes_go_before_a_prompts_own(self):
        state = near_and_far()
        state.links["far", "near"].queued_bytes = 3.5e9  # 3.5 s
        assert decide(RouteRequest(10000), state, POLICY).prefill == "near"

    @pytest.mark.parametrize("threshold", [100, 10000, math.inf])
    def test_each_transfer_that_waits_is_delayed_by_a_prompts_own(self, threshold):
        state = near_and_far()
        state.threshold = threshold
        link = state.links["far", "near"]
        link.queued_bytes, link.n_queued = 20 * link.bytes_per_second, 8
        far = next(option for option in options(RouteRequest(10000), state, POLICY) if option.prefill == "far")
        assert far.delay_to_others_seconds == pytest.approx(8 * 9.1e6 / link.bytes_per_second)

    def test_pull_delays_each_transfer_that_waits(self):
        state = busy(paper_state(), waiting=1)
        link = state.links["prfaas", "pd"]
        link.n_queued = 3
        pulled = next(o for o in options(WORKED_EXAMPLE, state, Policy("abundant")) if o.pull is not None)
        assert pulled.pull.delay_to_others_seconds == pytest.approx(3 * pulled.pull.nbytes / link.bytes_per_second)
        assert pulled.delay_to_others_seconds == pytest.approx(pulled.pull.delay_to_others_seconds)

    def test_retransmissions_make_a_link_slower(self):
        state = near_and_far()
        state.links["far", "near"] = LinkState(9e6)
        assert decide(RouteRequest(10000), state, POLICY).prefill == "far"
        state.links["far", "near"].retransmitted = 0.05
        assert decide(RouteRequest(10000), state, POLICY).prefill == "near"

    def test_transfer_overlaps_the_prefill(self):
        state = near_and_far()
        state.links["far", "near"].bytes_per_second = 5e6  # 9.1 MB
        parts = decide(RouteRequest(10000), state, POLICY).first_token
        assert (parts.prefill, parts.transfer) == (pytest.approx(1.0), pytest.approx(0.82))

    @pytest.mark.parametrize("broken", ["link", "instances"])
    def test_what_is_down_is_not_used_and_the_reason_says_so(self, broken):
        state = near_and_far()
        if broken == "link":
            state.links["far", "near"].bytes_per_second = 0
        else:
            state.clusters["far"].n_prefill = 0
        route = decide(RouteRequest(10000), state, POLICY)
        assert (route.prefill, route.send) == ("near", None)
        assert "nothing else works or is connected" in route.reason


class TestDeadline:
    def test_place_that_alone_meets_it_is_taken_though_others_lose(self):
        state, request = busy(paper_state()), RouteRequest(15000)
        assert decide(request, state, POLICY).prefill == "pd"
        route = decide(replace(request, deadline_seconds=102), state, POLICY)
        assert route.prefill == "prfaas"
        assert "all others miss the deadline" in route.reason

    @pytest.mark.parametrize(
        ("far", "near", "prefill"),
        [((30, 0), (10, 0), "near"), ((10, 0), (30, 0), "far"), ((10, 60), (30, 0), "near"), ((10, 0), (4, 60), "far")],
    )
    def test_late_prompt_goes_where_late_ones_are_served_first_and_says_so(self, far, near, prefill):
        state = near_and_far(far[0], near[0])
        state.clusters["far"].late_seconds, state.clusters["near"].late_seconds = far[1], near[1]
        route = decide(RouteRequest(10000, deadline_seconds=5), state, POLICY)
        assert (route.prefill, route.priority) == (prefill, LATE)
        assert "late everywhere" in route.reason

    def test_late_prompt_waits_for_those_that_wait_for_a_slow_link(self):
        state = near_and_far(near_wait=4)
        state.links["far", "near"] = LinkState(1e7, late_bytes=1e9)
        assert decide(RouteRequest(10000, deadline_seconds=1), state, POLICY).prefill == "near"

    def test_prompt_in_time_says_until_when_it_may_begin(self):
        route = decide(RouteRequest(10000, deadline_seconds=10), near_and_far(far_wait=1), POLICY)
        assert (route.prefill, route.priority) == ("far", ORDINARY)
        assert route.begin_within == pytest.approx(10 - route.first_token.total + 1)
        assert decide(RouteRequest(10000), near_and_far(), POLICY).begin_within == math.inf

    def test_late_prompt_on_an_idle_fleet_goes_where_it_is_soonest(self):
        route = decide(RouteRequest(10000, deadline_seconds=0.1), near_and_far(), POLICY)
        assert route.prefill == "far"
        assert "late everywhere" in route.reason


class TestReason:
    def test_compares_with_the_next_best_by_cost(self):
        assert "2.00 s sooner than near" in decide(RouteRequest(10000), near_and_far(), POLICY).reason

    def test_place_that_is_as_soon_says_so(self):
        state = near_and_far()
        totals = {option.prefill: option.total for option in options(RouteRequest(10000), state, POLICY)}
        state.clusters["far"].prefill_wait_seconds += totals["near"] - totals["far"]
        assert decide(RouteRequest(10000), state, POLICY).reason.endswith((": as soon as near.", ": as soon as far."))

    def test_cheaper_place_says_so(self):
        route = decide(RouteRequest(36000), near_and_far(), Policy(usd_per_second_saved=0.0001))
        assert "later than far, but $0.001 cheaper" in route.reason

    def test_later_place_that_spares_others_says_how_much(self):
        route = decide(RouteRequest(15000), busy(paper_state()), POLICY)
        assert "later than prfaas, which saves all other requests" in route.reason


class TestMoney:
    def test_ceiling_keeps_a_prompt_where_nothing_is_borrowed(self):
        request = RouteRequest(36000)  # 3.6 s at a dollar per hour
        assert decide(request, near_and_far(), POLICY).usd == pytest.approx(0.001)
        route = decide(replace(request, usd_ceiling=0.0009), near_and_far(), POLICY)
        assert (route.prefill, route.usd) == ("near", 0)
        assert "ceiling" in route.reason

    def test_ceiling_that_nothing_keeps_is_an_error_with_the_price(self):
        with pytest.raises(UnavailableError, match=r"would cost \$0.001 .* ceiling is \$0.0009"):
            decide(RouteRequest(36000, usd_ceiling=0.0009), FleetState.idle(two_clusters(near=0), 0), POLICY)

    def test_worth_of_a_second_weighs_the_price(self):
        request = RouteRequest(36000)  # 7.2 s sooner for 0.001 dollars
        for worth, prefill in ((0.0002, "far"), (0.0001, "near")):
            assert decide(request, near_and_far(), Policy(usd_per_second_saved=worth)).prefill == prefill


class TestErrors:
    def test_no_cluster_that_decodes(self):
        with pytest.raises(UnavailableError, match="No cluster has an instance that decodes now"):
            decide(RouteRequest(100), FleetState.idle(two_clusters(decode=0), 0), POLICY)

    def test_unknown_cluster_to_decode_is_named_with_those_that_exist(self):
        with pytest.raises(UsageError, match=r"nearby.*far.*near"):
            decide(RouteRequest(100, decode="nearby"), near_and_far(), POLICY)

    def test_cluster_that_can_not_decode_is_replaced_and_the_reason_says_so(self):
        route = decide(RouteRequest(100, decode="far"), near_and_far(), POLICY)
        assert route.decode == "near"
        assert "far has no instance that decodes" in route.reason

    def test_no_cluster_that_prefills(self):
        with pytest.raises(UnavailableError, match="that prefills and is connected"):
            decide(RouteRequest(100), FleetState.idle(two_clusters(far=0, near=0), 0), POLICY)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("rule", "rich"), ("period_seconds", 0), ("role_hysteresis", -1), ("window_requests", 0)],
    )
    def test_policy_out_of_range_names_the_field(self, field, value):
        with pytest.raises(UsageError, match=field):
            Policy(**{field: value})


@pytest.mark.parametrize("rate", [0.0, 1e-300, 999.0])
def test_link_that_carries_next_to_nothing_is_down(rate):
    state = near_and_far()
    for link in state.links.values():
        link.bytes_per_second = rate
    assert decide(RouteRequest(50000), state, Policy()).prefill == "near"
    state.clusters["near"].n_prefill = 0
    with pytest.raises(UnavailableError):
        decide(RouteRequest(50000), state, Policy())


NAMES = ("near", "far", "third")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": -5}, "1 token or more, not -5"),
        ({"tokens": 0}, "1 token or more, not 0"),
        ({"tokens": math.nan}, "1 token or more, not nan"),
        ({"deadline_seconds": math.nan}, "deadline_seconds must be a number, not nan"),
        ({"usd_ceiling": math.nan}, "usd_ceiling must be 0 or more, not nan"),
        ({"usd_ceiling": -1.0}, "usd_ceiling must be 0 or more, not -1"),
    ],
)
def test_impossible_request_is_refused_by_its_field(change, said):
    with pytest.raises(UsageError, match=said) as error:
        RouteRequest(**({"tokens": 10} | change))
    assert error.value.param in change


@pytest.mark.parametrize("cached", [(-1,), (5, (-3, 5)), (math.nan,)])
def test_impossible_prefix_is_refused(cached):
    with pytest.raises(UsageError, match="0 or more tokens"):
        Cached(*cached)


@st.composite
def fleets(draw: st.DrawFn) -> FleetState:
    """Three clusters with any roles, any links and any state, dead parts included."""
    recurrent = draw(st.booleans())
    counts = st.integers(0, 3)
    clusters, states, links, link_states = {}, {}, {}, {}
    for name in NAMES:
        kind = profile(name, draw(st.floats(0.01, 2)), recurrent)
        clusters[name] = Cluster(name, kind, draw(counts), draw(counts))
        depth, waits = st.integers(0, 100), st.floats(0, 100)
        states[name] = ClusterState(draw(counts), draw(counts), draw(waits), draw(depth), draw(waits))
    for ends in [(a, b) for a in NAMES for b in NAMES if a != b and draw(st.booleans())]:
        links[ends] = Link(*ends, 1e9, draw(st.floats(0, 0.1)))
        rate = draw(st.one_of(st.just(0.0), st.floats(1e5, 1e10)))
        link_states[ends] = LinkState(
            rate, draw(st.floats(0, 1e10)), 0.0, draw(st.floats(0, 0.5)), draw(st.integers(0, 100))
        )
    return FleetState(Fleet(clusters, links), states, link_states, draw(st.floats(0, 1e6)))


@st.composite
def requests(draw: st.DrawFn) -> RouteRequest:
    cached = {}
    for name in NAMES:
        if draw(st.booleans()):
            states = draw(st.lists(st.integers(1, 200000), max_size=3, unique=True))
            cached[name] = Cached(draw(st.integers(0, 200000)), tuple(sorted(states)))
    limit = st.one_of(st.none(), st.floats(0, 100))
    decode = draw(st.one_of(st.none(), st.sampled_from(NAMES)))
    return RouteRequest(draw(st.integers(1, 150000)), cached, draw(limit), draw(limit), decode)


policies = st.builds(
    Policy, rule=st.sampled_from(["auto", "scarce", "abundant"]), usd_per_second_saved=st.floats(1e-6, math.inf)
)


def works(state: FleetState, ends: tuple[str, str]) -> bool:
    return ends in state.links and state.links[ends].bytes_per_second > 0


def route_or_none(request: RouteRequest, state: FleetState, policy: Policy) -> Route | None:
    try:
        return decide(request, state, policy)
    except UnavailableError:
        return None


def check(route: Route, request: RouteRequest, state: FleetState) -> None:
    """Every step of a route is possible now."""
    fleet = state.fleet.clusters
    assert state.clusters[route.prefill].n_prefill > 0
    assert state.clusters[route.decode].n_decode > 0
    assert (route.send is not None) == (route.prefill != route.decode)
    for move in (route.pull, route.send):
        assert move is None or (works(state, (move.source, move.target)) and move.nbytes > 0)
    if request.decode is not None and state.clusters[request.decode].n_decode:
        assert route.decode == request.decode
    assert request.usd_ceiling is None or route.usd <= request.usd_ceiling
    holder = route.pull.source if route.pull else route.prefill
    held = request.cached.get(holder, Cached(0))
    recurrent = fleet[holder].profile.recurrent
    assert 0 <= route.reused_tokens <= min(held.tokens, request.tokens - 1)
    assert not recurrent or route.reused_tokens in (0, *held.states)
    parts = route.first_token
    assert min(parts.queue, parts.pull, parts.prefill, parts.transfer, parts.decode) >= 0
    assert math.isfinite(parts.total)
    assert route.reason


@given(fleets(), requests(), policies)
def test_routes_are_feasible_and_only_what_has_none_is_refused(state, request, policy):
    decoding = [name for name in NAMES if state.clusters[name].n_decode]
    if request.decode in decoding:
        decoding = [request.decode]
    possible = any(
        state.clusters[name].n_prefill and (name == target or works(state, (name, target)))
        for name in NAMES
        for target in decoding
    )
    route = route_or_none(request, state, policy)
    if route is None:
        assert not possible or request.usd_ceiling is not None
    else:
        check(route, request, state)


@given(fleets(), requests(), policies)
def test_same_state_gives_the_same_route_and_is_left_as_it_was(state, request, policy):
    before, first = copy.deepcopy(state), route_or_none(request, state, policy)
    assert route_or_none(request, state, policy) == first == route_or_none(request, before, policy)
    assert state == before


@given(fleets(), requests(), policies, st.floats(1, 1000))
def test_faster_links_never_worsen_a_prediction(state, request, policy, factor):
    before = {(o.prefill, o.decode, o.reused): o for o in options(request, state, policy)}
    for link in state.links.values():
        link.bytes_per_second *= factor
    after = {(o.prefill, o.decode, o.reused): o for o in options(request, state, policy)}
    assert before.keys() <= after.keys()
    for key, option in before.items():
        assert after[key].total <= option.total * (1 + 1e-9)
        assert after[key].delay_to_others_seconds <= option.delay_to_others_seconds * (1 + 1e-9)


@given(fleets(), requests(), policies, st.floats(1, 1000))
def test_faster_links_turn_no_remote_route_local(state, request, policy, factor):
    request = replace(request, cached={}, deadline_seconds=None)
    before = route_or_none(request, state, policy)
    if before is None:
        return
    for link in state.links.values():
        link.bytes_per_second *= factor
    after = decide(request, state, policy)
    assert before.prefill == before.decode or after.prefill != after.decode


@given(fleets(), requests(), policies, st.sampled_from(NAMES), st.floats(0, 100))
def test_longer_queue_draws_no_prompt(state, request, policy, name, seconds):
    request = replace(request, deadline_seconds=None)
    before = route_or_none(request, state, policy)
    if before is None:
        return
    state.clusters[name].prefill_wait_seconds += seconds
    after = decide(request, state, policy)
    assert after.prefill != name or before.prefill == name
    assert after.first_token.queue == state.clusters[after.prefill].prefill_wait_seconds
