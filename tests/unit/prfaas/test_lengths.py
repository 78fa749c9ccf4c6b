"""Distributions of prompt lengths: shares and means of bands, traces after prefix hits, and what is refused."""

import itertools
import math
import random

import pytest

from earthshine.errors import UsageError
from earthshine.loadgen.trace import Arrival, read_trace
from earthshine.prfaas.lengths import LogNormal, Sample, between, trace_lengths
from earthshine.prfaas.workload import PAPER_LENGTHS


def test_log_normal_agrees_with_draws_from_it():
    lengths, draw = LogNormal(8.0, 1.2, 200, 30000), random.Random(3)
    drawn = [x for x in (draw.lognormvariate(8.0, 1.2) for _ in range(200_000)) if 200 <= x <= 30000]
    for low, high in ((0, 500), (500, 4000), (4000, 30000), (0, 30000), (29000, 1e9)):
        inside = [x for x in drawn if low < x <= high]
        band = between(lengths, low, high)
        assert band.share == pytest.approx(len(inside) / len(drawn), abs=0.004)
        assert band.mean == pytest.approx(sum(inside) / len(inside), rel=0.01)


def test_the_papers_workload_has_the_moments_that_its_tables_imply():
    short, long = PAPER_LENGTHS.upto(19400), between(PAPER_LENGTHS, 19400, 131072)
    assert (long.share, long.mean, short.mean) == pytest.approx((0.4957, 45046, 10224), rel=1e-3)
    assert PAPER_LENGTHS.mean == pytest.approx(27486, rel=1e-4)
    assert PAPER_LENGTHS.upto(19199).share == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("lengths", [PAPER_LENGTHS, Sample([100, 100, 300, 5000, 70000])])
def test_bands_add_up_to_the_whole(lengths):
    cuts = [0.0, *lengths.cuts(50)]
    bands = [between(lengths, low, high) for low, high in itertools.pairwise(cuts)]
    assert cuts[-1] == lengths.longest
    assert cuts == sorted(set(cuts))
    assert math.fsum(band.share for band in bands) == pytest.approx(1)
    assert math.fsum(band.tokens for band in bands) == pytest.approx(lengths.mean)


def test_sample_counts_a_length_at_the_threshold_as_short():
    lengths = Sample([10, 20, 20, 30])
    assert between(lengths, 20, 30) == (0.25, 7.5)
    assert lengths.upto(20) == (0.75, 12.5)
    assert lengths.upto(30).share == 1
    assert between(lengths, 20, 29).mean == 0


def test_percentile_counts_equal_lengths():
    assert [Sample([5, 5, 5, 9]).percentile(share) for share in (0.25, 0.75, 0.76, 1.0)] == [5, 5, 9, 9]


def test_cuts_of_many_lengths_are_few():
    lengths = Sample(range(1, 10001))
    assert len(lengths.cuts(256)) <= 256
    assert lengths.cuts(256)[-1] == 10000


def test_trace_lengths_are_what_prefix_hits_leave():
    shared = Arrival(0, 1024, 1, (1, 2))
    lengths = trace_lengths([shared, shared, Arrival(1, 1600, 1, (1, 2, 3, 4)), Arrival(2, 700, 1)])
    assert [lengths.upto(tokens).share for tokens in (1, 576, 700, 1024)] == [0.25, 0.5, 0.75, 1]


def test_mooncake_conversations_keep_two_thirds_of_their_tokens(shared_data):
    arrivals = read_trace(shared_data / "traces" / "conversation_trace.jsonl", 20000)
    left = trace_lengths(arrivals).mean / (sum(a.input_tokens for a in arrivals) / len(arrivals))
    assert left == pytest.approx(1 - 0.374, abs=0.002)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((math.nan, 1.0), "mu"),
        ((-1, 1.0), "mu"),
        ((9.9, 0.0), "sigma"),
        ((9.9, 1.0, 0, 10), "between two numbers of tokens"),
        ((9.9, 1.0, 500, 500), "between two numbers of tokens"),
        ((9.9, 1.0, 128, 1e12), "between two numbers of tokens"),
        ((2.0, 0.1, 100000, 131072), "median is 7"),
    ],
)
def test_impossible_log_normals_are_refused(given, named):
    with pytest.raises(UsageError, match=named):
        LogNormal(*given)


@pytest.mark.parametrize("tokens", [[], [0, 5], [math.inf], [1000, 2000, math.nan, 3000]])
def test_impossible_samples_are_refused(tokens):
    with pytest.raises(UsageError):
        Sample(tokens)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 3.0])
def test_cuts_divide_narrow_lengths_as_finely_as_broad_ones(sigma):
    lengths = LogNormal(9.9, sigma)
    cuts = [0.0, *lengths.cuts(256)]
    assert len(cuts) <= 257
    assert max(between(lengths, low, high).share for low, high in itertools.pairwise(cuts)) < 0.01
