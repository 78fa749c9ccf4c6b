"""What a folder recommends for sampling: the publisher's numbers, greedy where it says nothing, and no nonsense."""

import json

import pytest

from earthshine.engine import SamplingParams, sampling_defaults
from earthshine.errors import CheckpointError


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (None, {"temperature": 0.0}),
        ({"temperature": None, "eos_token_id": 1}, {"temperature": 0.0}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        ({"top_k": 20}, {"temperature": 1.0, "top_k": 20}),
        ({"temperature": 0.6, "top_k": None}, {"temperature": 0.6}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": False}, {"temperature": 0.0}),
    ],
)
def test_a_folder_recommends(tmp_path, found, wanted):
    if found is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(found))
    assert sampling_defaults(tmp_path) == SamplingParams(**wanted)


@pytest.mark.parametrize(
    "found",
    [
        {"temperature": -0.1},
        {"temperature": 101},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2.0},
        {"top_k": True},
    ],
    ids=str,
)
def test_a_recommendation_without_meaning_is_refused(tmp_path, found):
    (tmp_path / "generation_config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=next(iter(found))):
        sampling_defaults(tmp_path)
