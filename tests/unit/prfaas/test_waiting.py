"""The order of service: late prompts behind those that can be in time, with a share of their own, at every place."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.decide import decide
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import FleetState, LinkState, Route, RouteRequest
from earthshine.prfaas.simulator.baselines import local_only
from earthshine.prfaas.simulator.clusters import DecodeBatches, PrefillQueue
from earthshine.prfaas.simulator.conditions import Conditions, Failure, RateChange
from earthshine.prfaas.simulator.links import SimulatedLink
from earthshine.prfaas.simulator.outcome import Served
from earthshine.prfaas.simulator.requests import SimulatedRequest
from earthshine.prfaas.simulator.simulate import simulate
from earthshine.prfaas.simulator.waiting import LATE_SHARE, WaitingRequests

from .simulated import BATCH, ENDS, STEP, at, two_clusters


def request(late: bool = False, begin_by: float = math.inf, admit_by: float = math.inf) -> SimulatedRequest:
    found = SimulatedRequest(Arrival(0.0, 1000, 10), (), (), 1000, 10, Served(0.0, 1000))
    found.late, found.begin_by, found.admit_by = late, begin_by, admit_by
    return found


def ours(request: RouteRequest, state: FleetState) -> Route:
    return decide(request, state, Policy())


def test_late_requests_are_served_last_and_else_in_the_order_of_arrival():
    waiting = WaitingRequests()
    late, first, second = request(late=True), request(), request()
    for each in (late, first, second):
        waiting.add(each, 1.0)
    assert [waiting.pop()[0] for _ in range(3)] == [first, second, late]
    assert not waiting


def test_late_requests_get_their_share_of_the_work_while_others_never_end():
    waiting, served = WaitingRequests(), {True: 0.0, False: 0.0}
    for _ in range(1000):
        waiting.add(request(late=True), 2.0)
        waiting.add(request(), 1.0)
        found, work = waiting.pop()
        served[found.late] += work
    assert served[True] / served[False] == pytest.approx(LATE_SHARE, rel=0.1)


class TestPrefillQueue:
    def test_prompt_that_can_not_begin_in_time_makes_the_longest_before_it_late(self):
        queue, long, short, last = PrefillQueue(1), request(begin_by=9), request(begin_by=9), request(begin_by=9)
        queue.start(0.0, request(), 3.0, 3.0)
        for each, seconds in ((long, 6.0), (short, 1.0), (last, 1.0)):
            queue.add(0.0, each, seconds)
        assert queue.wait(0.0) == 5.0
        assert [each.late for each in (long, short, last)] == [True, False, False]

    def test_prompt_without_a_deadline_never_becomes_late(self):
        queue, long, short = PrefillQueue(1), request(), request(begin_by=2)
        queue.add(0.0, long, 6.0)
        queue.add(0.0, short, 1.0)
        queue.wait(0.0)
        assert (long.late, short.late) == (False, True)

    @given(st.integers(1, 3), st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 20)), max_size=12))
    def test_all_that_is_not_late_begins_in_time(self, n, prompts):
        queue = PrefillQueue(n)
        for seconds, begin_by in prompts:
            queue.add(0.0, request(begin_by=begin_by), seconds)
        queue.wait(0.0)
        assert len(list(queue.queue)) == len(prompts)
        free = [0.0] * n
        for each, seconds in queue.queue.timely.items():
            begin = min(free)
            assert begin <= each.begin_by + 1e-3
            free[free.index(begin)] = begin + seconds


class TestDecodeBatches:
    def full(self, *waiting: SimulatedRequest) -> DecodeBatches:
        batches = DecodeBatches(two_clusters().clusters["near"])
        for _ in range(BATCH):
            batches.enqueue(request())
            assert batches.admit(0.0) is not None
        for each in waiting:
            batches.enqueue(each)
        assert batches.admit(0.0) is None
        return batches

    def admitted(self, batches: DecodeBatches, now: float) -> SimulatedRequest:
        batches.start_instance()
        found = batches.admit(now)
        assert found is not None
        return found[1]

    def test_sequence_with_the_earliest_deadline_is_admitted_first(self):
        patient, urgent = request(admit_by=9.0), request(admit_by=5.0)
        assert self.admitted(self.full(patient, urgent), 1.0) is urgent

    def test_sequences_that_missed_their_deadline_wait_behind_the_others(self):
        missed, patient = request(admit_by=5.0), request(admit_by=9.0)
        batches = self.full(patient, missed)
        assert self.admitted(batches, 6.0) is patient
        assert (missed.late, patient.late) == (True, False)
        assert batches.admit(7.0) == (batches.instances[-1], missed)

    def test_sequences_without_deadlines_are_admitted_in_the_order_of_arrival(self):
        first, second = request(), request()
        assert self.admitted(self.full(first, second), 1e6) is first


class TestLink:
    def make(self) -> tuple[SimulatedLink, SimulatedRequest, SimulatedRequest]:
        link = SimulatedLink(LinkState(100.0), 0.0, Conditions())
        late, other = request(late=True), request()
        link.assign(late, 1000.0)
        link.prefilled(0.0, late)
        return link, late, other

    def test_late_transfer_pauses_while_another_is_under_way_and_loses_nothing(self):
        link, late, other = self.make()
        link.assign(other, 200.0)
        link.start(4.0, other)
        link.refresh(4.0)
        assert (link.state.queued_bytes, link.state.late_bytes) == (200.0, pytest.approx(600.0))
        assert link.next_change() == pytest.approx(6.0)
        assert link.pop_ended(6.0) is other
        assert link.next_change() == pytest.approx(12.0)
        assert link.pop_ended(12.0) is late
        assert link.sent_bytes(12.0) == pytest.approx(1200.0)

    def test_late_transfer_uses_what_a_growing_cache_leaves(self):
        link, _, other = self.make()
        link.assign(other, 100.0)
        link.start(0.0, other, prefill_seconds=2.0)
        link.prefilled(2.0, other)
        link.refresh(2.0)
        assert link.state.late_bytes == pytest.approx(900.0)

    def test_late_transfer_that_is_given_up_leaves_nothing_behind(self):
        link, late, _ = self.make()
        assert link.release(1.0, late)
        link.refresh(1.0)
        assert (link.state.queued_bytes, link.state.late_bytes) == (0.0, 0.0)
        assert link.next_change() == math.inf


class TestSimulation:
    def test_overload_leaves_most_in_time_that_the_fleet_can_serve(self):
        """Six times as many as one instance can prefill; first in, first out, only those of the first seconds are."""
        arrivals = at(*(second / 2 for second in range(120)))
        runs = [simulate(two_clusters(far=0), arrivals, router, deadline_seconds=12) for router in (ours, local_only)]
        in_time = [run.within(12) for run in runs]
        assert in_time[0] >= 0.9 * 60 / 3
        assert in_time[1] <= 5
        assert runs[0].unserved == 0

    def test_overload_of_decode_leaves_most_in_time_that_it_can_serve(self):
        """A batch of 4 replies 2 times per second; four times as many arrive."""
        output = round(2 / STEP)
        arrivals = at(*(second / 8 for second in range(480)), tokens=100, output=output)
        run = simulate(two_clusters(far=0, near=2), arrivals, ours, deadline_seconds=3)
        assert run.within(3) >= 0.9 * 60 * 2
        assert run.unserved == 0

    @given(
        st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60000)), min_size=1, max_size=30),
        st.floats(0.1, 20),
        st.lists(st.tuples(st.floats(0, 40), st.sampled_from([0.0, 1e6, 1e9])), max_size=4),
        st.lists(st.tuples(st.floats(0, 40), st.sampled_from([("far", "prefill"), ("near", "decode")])), max_size=3),
    )
    def test_no_request_is_lost_whatever_is_late_or_fails(self, prompts, deadline, rates, failures):
        arrivals = [Arrival(second, tokens, 10) for second, tokens in sorted(prompts)]
        changes = tuple(RateChange(second, ENDS, rate) for second, rate in sorted(rates))
        failed = tuple(Failure(second, second + 5, *part) for second, part in failures)
        run = simulate(
            two_clusters(near=1, far=2, decode=1), arrivals, ours, threshold=10000,
            conditions=Conditions(rates=changes, failures=failed), deadline_seconds=deadline,
        )  # fmt: skip
        assert run.unserved == 0
        assert all(one.first_token >= one.arrived for one in run.served)
