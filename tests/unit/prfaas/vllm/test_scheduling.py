"""Which prompts are fetched and served, decided from what vLLM's scheduler hands to a connector."""

import logging
from types import SimpleNamespace

from earthshine.prfaas.vllm.orders import Chunk, Load, NewPrompt
from earthshine.prfaas.vllm.scheduling import Scheduling


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduling(**options) -> Scheduling:
    return Scheduling(**{"fetches": True, "sends": True, "min_tokens": 64, "retry_seconds": 30.0} | options)


def request(n_tokens: int = 200, request_id: str = "a", **fields) -> SimpleNamespace:
    """As far as the connector reads it, a Request of vLLM."""
    plain = {"mm_features": [], "lora_request": None, "prompt_embeds": None, "cache_salt": None}
    given = {"request_id": request_id, "prompt_token_ids": list(range(n_tokens)), "kv_transfer_params": None}
    return SimpleNamespace(**plain | given | fields)


def step(new=(), cached=(), preempted=(), resumed=()) -> SimpleNamespace:
    """A SchedulerOutput. `new` and `cached`: (request id, tokens computed, tokens scheduled, blocks)."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=each[0], num_computed_tokens=each[1], block_ids=(each[3],)) for each in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[each[0] for each in cached],
            resumed_req_ids=set(resumed),
            num_computed_tokens=[each[1] for each in cached],
            new_block_ids=[None if each[3] is None else (each[3],) for each in cached],
        ),
        num_scheduled_tokens={each[0]: each[2] for each in (*new, *cached)},
        preempted_req_ids=set(preempted),
    )


def test_whole_pages_beyond_what_is_computed_are_fetched_once():
    made = scheduling(sends=False)
    asked = request(200)
    assert (made.matched(asked, 0), made.matched(asked, 32)) == (192, 160)
    made.allocated(asked, [5, 6, 7], 160)
    orders = made.orders(step())
    assert orders.loads == [Load("a", "", list(range(192)), 32, [5, 6, 7])]
    assert not made.orders(step()).loads
    assert made.matched(asked, 0) == 0  # after a failure or a preemption, vLLM computes it
    made.finished("a")
    assert made.matched(asked, 0) == 192  # another request of the same name


def test_short_prompts_are_computed_here():
    made = scheduling(min_tokens=128)
    assert [made.matched(request(n), 0) for n in (127, 128, 191, 192)] == [0, 128, 128, 192]
    assert made.matched(request(200), 80) == 0


def test_prompts_that_tokens_do_not_name_are_left_alone():
    made = scheduling()
    others = ({"mm_features": [object()]}, {"lora_request": object()}, {"prompt_embeds": object()})
    for fields in (*others, {"prompt_token_ids": None}, {"cache_salt": "s" * 257}):
        odd = request(**fields)
        assert made.matched(odd, 0) == 0
        made.allocated(odd, [1], 0)
        assert not made.orders(step(new=[("a", 0, 200, [1])])).prompts
        assert not made.finished("a")


def test_producer_alone_fetches_nothing():
    assert scheduling(fetches=False).matched(request(), 0) == 0


def test_failed_transfer_stops_fetching_for_a_while():
    clock = Clock()
    made = scheduling(now=clock)
    made.failed()
    assert made.matched(request(), 0) == 0
    clock.now = 29.0
    assert made.matched(request(), 0) == 0
    clock.now = 30.0
    assert made.matched(request(), 0) == 192


def test_salt_is_the_tenant():
    made = scheduling()
    made.allocated(request(cache_salt="team"), [1], 192)
    orders = made.orders(step(new=[("a", 192, 8, [1])]))
    assert orders.loads[0].tenant == orders.prompts[0].tenant == "team"


def test_chunks_carry_the_blocks_so_far_and_end_with_the_prompt():
    made = scheduling(fetches=False)
    asked = request(100, kv_transfer_params={"do_remote_decode": True})
    made.allocated(asked, [4, 2], 0)
    first = made.orders(step(new=[("a", 16, 48, [4, 2, 9, 1])]))
    assert first.prompts == [NewPrompt("a", "", asked.prompt_token_ids, True)]
    assert first.chunks == [Chunk("a", 16, 64, [4, 2, 9, 1])]
    second = made.orders(step(cached=[("a", 64, 36, [3, 8, 7])]))
    assert (second.prompts, second.chunks) == ([], [Chunk("a", 64, 100, [4, 2, 9, 1, 3, 8, 7])])
    assert not made.orders(step(cached=[("a", 100, 1, None)])).chunks
    assert made.finished("a")
    assert not made.finished("a")


def test_resumed_prompt_starts_again_in_its_new_blocks():
    made = scheduling(fetches=False)
    asked = request(100)
    made.allocated(asked, [], 0)
    made.orders(step(new=[("a", 0, 100, [4, 2])]))
    assert made.orders(step(preempted=["a"])).preempted == {"a"}
    again = made.orders(step(cached=[("a", 0, 103, [8, 9])], resumed=["a"]))
    assert again.prompts == [NewPrompt("a", "", asked.prompt_token_ids, False)]
    assert again.chunks == [Chunk("a", 0, 100, [8, 9])]


def test_request_that_never_ran_frees_its_blocks_at_once():
    made = scheduling()
    made.allocated(request(), [1], 192)
    made.orders(step())
    assert not made.finished("a")


def test_peer_in_a_request_is_ignored_and_logged_once(caplog):
    made = scheduling()
    with caplog.at_level(logging.WARNING, "vllm.earthshine"):
        for name in "ab":
            evil = request(request_id=name, kv_transfer_params={"remote_host": "10.0.0.1", "remote_port": 1})
            assert made.matched(evil, 0) == 192
            made.allocated(evil, [1], 192)
    assert len(caplog.records) == 1
    assert not any("10.0.0.1" in str(load) for load in made.orders(step()).loads)
