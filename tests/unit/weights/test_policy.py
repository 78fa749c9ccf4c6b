"""The policy of expert slots: experts used last, and those used after similar steps, stay."""

import json
from pathlib import Path

import numpy as np
import pytest

from earthshine.weights.policy import LayerPolicy


def ids(*experts: int) -> np.ndarray:
    return np.array(experts, dtype=np.int64)


def stepped(steps: list[list[int]], n_experts: int = 12) -> LayerPolicy:
    policy = LayerPolicy(n_experts, len(steps[0]))
    for used in steps:
        policy.step(ids(*used), np.ones(len(used)))
    return policy


def test_the_last_step_scores_above_the_one_before_and_unused_experts_lowest() -> None:
    score = stepped([[0, 1], [2, 3], [4, 5]]).score()
    assert score[4] > score[2] > score[0] > score[6] == 0.0


def test_what_followed_a_like_step_scores_above_what_followed_others() -> None:
    """0 and 1 were followed by 2 and 3, and 4 and 5 by 6 and 7, equally long ago: now 0 and 1 are used again."""
    cycle = [[0, 1], [2, 3], [4, 5], [6, 7]] * 3
    score = stepped([*cycle, [8, 9], [8, 9], [0, 1]]).score()
    assert score[2] > 2 * score[6]
    score = stepped([*cycle, [8, 9], [8, 9], [4, 5]]).score()
    assert score[6] > 2 * score[2]


def test_a_missed_expert_enters_only_where_its_score_beats_a_residents_and_ties_stay() -> None:
    policy = stepped([[0, 1]] * 6 + [[0, 2]])
    assert set(policy.kept(ids(0, 1), ids(2), 2).tolist()) == {0, 1}
    assert set(policy.kept(ids(0, 5), ids(2), 2).tolist()) == {0, 2}
    assert policy.kept(ids(7, 8), ids(9, 10), 2).tolist() == [7, 8]
    assert set(policy.kept(ids(0), ids(2), 2).tolist()) == {0, 2}
    assert policy.kept(ids(), ids(2), 0).tolist() == []


def test_memory_is_bounded_and_what_is_older_is_forgotten() -> None:
    policy = stepped([[0, 1]] * 5 + [[2, 3], [4, 5]] * 150)
    score = policy.score()
    assert score[0] < 1e-80
    assert score[2] > 0.5
    wide = LayerPolicy(64, 2)
    for _ in range(40):  # more experts in a step than top_k: fewer steps are remembered, and none is mixed with another
        wide.step(np.arange(64), np.full(64, 0.1))
    wide.step(ids(1, 2), np.ones(2))
    assert np.isfinite(wide.score()).all()
    assert len(wide._share) == 512


def test_an_expert_that_more_tokens_of_a_batch_chose_scores_higher() -> None:
    policy = LayerPolicy(8, 2)
    policy.step(ids(1, 2, 3), np.array([0.25, 1.0, 0.75]))
    assert policy.kept(ids(1), ids(2, 3), 2).tolist() == [2, 3]


@pytest.mark.parametrize(("name", "least"), [("kimi_linear_300", 38.0), ("olmoe_299", 48.9)])
def test_recorded_routing_hits_as_often_as_noted(shared_data: Path, name: str, least: float) -> None:
    """Eight slots a layer, the last 80%, every second layer; plain LRU hits 23.4 and 32.4 percent."""
    lines = (shared_data / "routing" / f"{name}.jsonl").read_text().splitlines()
    trace = np.array([json.loads(line)["layers"] for line in lines])[:, ::2]
    hits = 0
    for layer in range(trace.shape[1]):
        policy, resident = LayerPolicy(int(trace.max()) + 1, 8), ids()
        for step, used in enumerate(trace[:, layer]):
            there = np.isin(used, resident)
            hits += int(there.sum()) * (step >= len(trace) // 5)
            policy.step(used, np.ones(8))
            resident = policy.kept(resident, used[~there], 8)
    assert 100 * hits / trace[len(trace) // 5 :].size > least
