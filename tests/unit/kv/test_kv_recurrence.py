"""Recurrent states beside pages: a kept state always belongs to exactly these tokens, and every slot is released."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from earthshine.errors import ContextError, UsageError
from earthshine.kv import PageKey, PageKeys, PagePool, PageTable, PrefixCache
from earthshine.spec.attention import STATES_PER_SEQUENCE, Rows, State

PAGE = 4
KEPT = ((Rows("latent", 1),), (State("sum", (2, 1), fp32=True), State("tail", (3,), fp32=False)))


def make_pool(n_pages: int = 32, n_states: int = 8) -> PagePool:
    return PagePool(KEPT, PAGE, n_pages, torch.bfloat16, n_states)


def after(tokens: list[int]) -> tuple[list[float], list[float]]:
    """The two states: a number that every token changes, beside its count; and the last three tokens."""
    total = 0
    for token in tokens:
        total = (total * 31 + token + 1) % 10007
    return [float(total), float(len(tokens))], [float(token) for token in [0, 0, 0, *tokens][-3:]]


def extend(page_table: PageTable, tokens: list[int]) -> None:
    """A step as attention does it: each segment's states start from their source and are changed in place."""
    page_table.reserve(page_table.length + len(tokens))
    page_table.write(0, page_table.length, torch.tensor(tokens).bfloat16()[:, None])
    left = list(tokens)
    assert page_table.recurrence is not None
    assert page_table.pool.states is not None
    for segment in page_table.recurrence.segments:
        total, tail = (page_table.pool.states.start(1, part, segment.source, segment.target) for part in (0, 1))
        for token in left[: segment.count]:
            total[0] = (total[0] * 31 + token + 1) % 10007
            total[1] += 1
            tail[:] = torch.cat((tail[1:], torch.tensor([token]).bfloat16()))
        del left[: segment.count]
    assert not left
    page_table.commit(page_table.length + len(tokens))


def held(page_table: PageTable) -> tuple[list[float], list[float]]:
    copies = list(page_table.copies())
    if len(copies) == 1:
        return after([])
    return copies[1].tolist(), copies[2].float().tolist()


def test_a_state_goes_back_to_the_last_page_boundary_of_a_step():
    page_table = PageTable(make_pool())
    extend(page_table, list(range(10)))
    assert held(page_table) == after(list(range(10)))
    assert [page_table.nearest(length) for length in (10, 9, 8, 7)] == [10, 8, 8, 0]
    assert page_table.truncate(9) == 8
    assert (page_table.length, held(page_table)) == (8, after(list(range(8))))
    assert page_table.truncate(7) == 0
    assert held(page_table) == after([])


def test_a_step_that_is_given_up_leaves_the_state_as_it_was():
    pool = make_pool()
    page_table = PageTable(pool)
    extend(page_table, [1, 2, 3])
    free = pool.states.free
    page_table.reserve(9)
    for segment in page_table.recurrence.segments:
        pool.states.start(1, 0, segment.source, segment.target).fill_(99)
    assert page_table.truncate(3) == 3
    assert held(page_table) == after([1, 2, 3])
    assert pool.states.free == free


def test_decoding_keeps_a_checkpoint_at_each_page_boundary_and_the_oldest_goes_first():
    page_table = PageTable(make_pool(n_states=4))
    for token in range(20):
        extend(page_table, [token])
    assert sorted(page_table.recurrence.checkpoints) == [4, 20]
    assert page_table.truncate(15) == 4
    assert held(page_table) == after(list(range(4)))


def test_step_without_a_free_slot_keeps_no_checkpoint():
    page_table = PageTable(make_pool(n_states=2))
    extend(page_table, list(range(6)))
    extend(page_table, list(range(6, 13)))
    assert page_table.recurrence.checkpoints == {}
    assert held(page_table) == after(list(range(13)))


@pytest.mark.parametrize(
    ("n_idle", "checkpoints", "n_left"), [(0, [], 0), (1, [4], 0), (2, [4, 12], 0), (3, [4, 12], 1)]
)
def test_step_drops_no_more_than_it_needs(n_idle, checkpoints, n_left):
    """One slot that it must have, for which the sequence's own checkpoint is dropped last, and one for a checkpoint."""
    pool = make_pool(n_states=2 + n_idle)
    idle = pool.states.allocate(n_idle)

    def reclaim() -> bool:
        if not idle:
            return False
        pool.states.release([idle.pop(0)])
        return True

    pool.states.reclaim = reclaim
    page_table = PageTable(pool)
    extend(page_table, list(range(6)))
    assert (sorted(page_table.recurrence.checkpoints), len(idle)) == ([4], n_idle)
    extend(page_table, list(range(6, 13)))
    assert (sorted(page_table.recurrence.checkpoints), len(idle)) == (checkpoints, n_left)
    assert held(page_table) == after(list(range(13)))


def test_each_sequence_needs_a_slot_and_every_step_one_more():
    pool = make_pool(n_states=2)
    one, other = PageTable(pool), PageTable(pool)
    extend(one, [1])
    extend(one, [2])
    extend(other, [3])
    with pytest.raises(ContextError, match="0 state slots free, but 1 are needed"):
        extend(other, [4])
    assert (other.length, held(other)) == (1, after([3]))
    one.release()
    extend(other, [4])
    assert held(other) == after([3, 4])


def test_pages_of_others_are_adopted_with_the_state_after_them():
    pool = make_pool()
    one, other = PageTable(pool), PageTable(pool)
    extend(one, list(range(9)))
    pages, slot = one.pages[:2], one.recurrence.checkpoints[8]
    pool.hold(pages)
    with pytest.raises(UsageError, match="without the state after them"):
        PageTable(pool).adopt(pages)
    pool.states.hold([slot])
    other.adopt(pages, slot)
    one.release()
    extend(other, [50, 51])
    assert held(other) == after([*range(8), 50, 51])
    assert other.truncate(9) == 8


def test_a_copy_fills_another_page_table():
    one, other = PageTable(make_pool()), PageTable(make_pool())
    extend(one, list(range(7)))
    other.fill(7, list(one.copies()))
    extend(other, [9])
    assert held(other) == after([*range(7), 9])


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["extend", "truncate", "adopt", "release"]), st.integers(0, 2), st.integers(0, 14)),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.integers(7, 12))
def test_any_sequence_of_operations_keeps_states_and_accounts_for_slots(actions, n_states):
    pool = make_pool(64, n_states)
    page_tables = [PageTable(pool) for _ in range(3)]
    models: list[list[int]] = [[], [], []]
    for mark, (action, which, n) in enumerate(actions):
        page_table, model = page_tables[which], models[which]
        if action == "extend":
            tokens = [(mark * 7 + i) % 50 for i in range(n)]
            if tokens:
                try:
                    extend(page_table, tokens)
                except ContextError:
                    assert pool.states.free == 0
                else:
                    model += tokens
        elif action == "truncate":
            kept = page_table.truncate(min(n, len(model)))
            assert kept <= min(n, len(model))
            del model[kept:]
        elif action == "adopt":
            target = (which + 1) % 3
            page_tables[target].release()
            checkpoints = page_table.recurrence.checkpoints
            length = max((at for at in checkpoints if at <= n), default=0)
            if length:
                pages = page_table.pages[: length // PAGE]
                pool.hold(pages)
                pool.states.hold([checkpoints[length]])
                page_tables[target].adopt(pages, checkpoints[length])
            models[target] = model[:length]
        else:
            page_table.release()
            model.clear()
        for each, tokens in zip(page_tables, models, strict=True):
            assert (each.length, held(each)) == (len(tokens), after(tokens))
    for page_table in page_tables:
        page_table.release()
    assert (pool.free_pages, pool.states.free) == (64, n_states)


class SlowStore:
    """A store that refuses pages without a state and writes the others when `work` is called."""

    def __init__(self) -> None:
        self.jobs: list = []

    def __contains__(self, key: PageKey) -> bool:
        return False

    def has_state(self, key: PageKey) -> bool:
        return False

    def used(self, keys) -> None: ...

    def write(self, key, tokens, parts, done, *, with_state=False) -> None:
        state = parts().state
        if with_state:
            self.jobs.append((done, parts, [part.clone() for part in state]))
        else:
            done(False)

    def work(self) -> None:
        done, parts, before = self.jobs.pop(0)
        assert all(map(torch.equal, parts().state, before)), "nobody writes to a slot that is being written to disk"
        done(True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["extend", "extend", "decode", "keep", "work"]), st.integers(0, 1), st.integers(1, 9)
        ),
        max_size=60,
    )
)
@example([("extend", 0, 6), ("extend", 1, 6), ("keep", 0, 1), ("keep", 1, 1)] * 6)
def test_running_sequences_find_a_slot_while_states_are_written(actions):
    pool = make_pool(1000, 2 * STATES_PER_SEQUENCE)
    store = SlowStore()
    cache = PrefixCache(pool, [store], store, threaded=False)
    page_tables = [PageTable(pool) for _ in range(2)]
    models: list[list[int]] = [[], []]
    for mark, (action, which, n) in enumerate(actions):
        page_table, model = page_tables[which], models[which]
        if action in ("extend", "decode"):
            tokens = [(mark * 7 + i) % 50 for i in range(1 if action == "decode" else n)]
            extend(page_table, tokens)
            model += tokens
            keys = PageKeys(str(which), PAGE).of(model, len(model) // PAGE)
            for key in keys:
                state = page_table.checkpoint(key.start + PAGE)
                if state is not None:
                    cache.add(key, page_table.pages[key.start // PAGE], model[key.start : key.start + PAGE], state)
        elif action == "keep":
            keys = PageKeys(str(which), PAGE).of(model, len(model) // PAGE)
            cache.spill([], [keys[length // PAGE - 1] for length in page_table.checkpoints])
        elif store.jobs:
            store.work()
            cache.settle()
        for each, tokens in zip(page_tables, models, strict=True):
            assert held(each) == after(tokens)
