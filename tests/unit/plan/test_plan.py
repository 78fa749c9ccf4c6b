"""Plans: impossible ones are refused in a sentence, equal arguments give equal plans, and plans are immutable."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.plan import Plan, PlanArgs, check_memory, make_plan, model_name, plan_json, sizes_of
from earthshine.plan.plan import MEMORY_SHARE, PROCESS_BYTES

from .made_up import FLAT, GIB, MIB, machine, made

SPEC = made()
SMALL = machine(memory_bytes=2 * GIB)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (PlanArgs(trunk="fp4"), "trunk must be bf16 or int8, not 'fp4'."),
        (PlanArgs(dtype="fp16"), "dtype must be bf16 or fp32, not 'fp16'."),
        (PlanArgs(trunk="int8", dtype="fp32"), "dtype must be bf16 with an int8 trunk, not fp32."),
        (PlanArgs(threads=0), "threads must be between 1 and 512, not 0."),
        (PlanArgs(threads=513), "not 513."),
        (PlanArgs(batch=0), "batch must be between 1 and 4096 sequences, not 0."),
        (PlanArgs(batch=4097), "not 4097."),
        (PlanArgs(context_tokens=0), "context must be between 1 and 4096 tokens with this model, not 0."),
        (PlanArgs(context_tokens=4097), "not 4097."),
        (PlanArgs(skew=-0.1), "skew must be between 0 and 4, not -0.1."),
        (PlanArgs(skew=4.01), "not 4.01."),
        (PlanArgs(skew=float("nan")), "not nan."),
        (PlanArgs(memory_bytes=2 * GIB + 1), "memory must be at most 2.00 GiB, which made up has, not 2.00 GiB."),
        (PlanArgs(memory_bytes=0), "The smallest budget that works"),
        (PlanArgs(memory_bytes=-5), "not -5 B. The smallest budget that works"),
        (PlanArgs(memory_bytes=400 * MIB), "not 400.00 MiB. The smallest budget that works"),
        (PlanArgs(batch=4097), "between 1 and 4096 sequences, not 4097."),
    ],
    ids=str,
)
def test_impossible_plan_options_are_refused(args: PlanArgs, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        make_plan(SPEC, args, SMALL)
    assert message in str(refusal.value)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


def test_large_limits_are_whole_numbers() -> None:
    for spec, args, message in (
        (made(max_position_embeddings=1 << 20), PlanArgs(context_tokens=0), "between 1 and 1048576 tokens with this"),
        (SPEC, PlanArgs(cache_tokens=-1), "between 0 and 1099511627776, not -1."),
    ):
        with pytest.raises(UsageError, match=message):
            make_plan(spec, args, SMALL)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_smallest_budget_named_is_one_that_works(dtype: str, batch: int) -> None:
    found = make_plan(SPEC, PlanArgs(2 * GIB, 1000, batch, dtype=dtype), SMALL).memory.smallest
    plan = make_plan(SPEC, PlanArgs(found, 1000, batch, dtype=dtype), SMALL)
    assert plan.memory.planned_bytes <= found == plan.memory.budget_bytes
    with pytest.raises(UsageError, match="smallest"):
        make_plan(SPEC, PlanArgs(found - 1, 1000, batch, dtype=dtype), SMALL)


def test_without_a_budget_there_is_one_from_what_is_free_else_from_the_machine() -> None:
    assert make_plan(SPEC, PlanArgs(), FLAT).memory.budget_bytes == int(MEMORY_SHARE * 64 * GIB)
    process = 300 * MIB
    free = make_plan(SPEC, PlanArgs(), FLAT, process_bytes=process, available_bytes=GIB)
    assert free.memory.budget_bytes == process + int(MEMORY_SHARE * GIB)
    assert free.process_bytes == free.memory.parts["process"] == process
    named = make_plan(SPEC, PlanArgs(3 * GIB), FLAT, available_bytes=GIB)
    assert named.memory.budget_bytes == 3 * GIB
    with pytest.raises(UsageError, match="memory must be given where no machine is"):
        make_plan(SPEC, PlanArgs())


def test_without_a_machine_there_is_no_forecast() -> None:
    plan = make_plan(SPEC, PlanArgs(2 * GIB), processors=3)
    assert (plan.machine, plan.threads, dict(plan.forecast)) == ("rates unknown", 3, {})
    assert plan.memory == make_plan(SPEC, PlanArgs(2 * GIB), SMALL).memory


def test_a_plan_says_what_was_asked_for() -> None:
    plan = make_plan(SPEC, PlanArgs(GIB, 512, 4, 7, "int8", skew=0.5), SMALL)
    memory = plan.memory
    assert (plan.machine, plan.trunk, plan.dtype, plan.threads) == ("made up", "int8", "bf16", 7)
    assert (memory.budget_bytes, memory.context_tokens, memory.batch) == (GIB, 512, 4)
    assert plan.process_bytes == PROCESS_BYTES
    assert set(plan.forecast) == {"decode at 1", "decode at 512", "first token of 256"}
    assert plan.forecast["decode at 512"].tokens == 4
    assert plan.forecast["first token of 256"].tokens == 256
    assert make_plan(SPEC, PlanArgs(GIB), SMALL).threads == 4, "the machine's processors"
    assert set(make_plan(SPEC, PlanArgs(GIB, 1), SMALL).forecast) == {"decode at 1", "first token of 1"}


def test_the_skew_changes_the_forecast_alone() -> None:
    tight = make_plan(SPEC, PlanArgs(GIB, 512), SMALL).memory.smallest
    even, skewed = (make_plan(SPEC, PlanArgs(tight, 512, skew=skew), SMALL) for skew in (0.0, 0.9))
    assert even.memory == skewed.memory
    assert dataclasses.replace(even, forecast={}) == dataclasses.replace(skewed, forecast={})


@pytest.mark.parametrize(("trunk", "dtype"), [("int8", "bf16"), ("bf16", "fp32")])
def test_a_trunk_in_another_form_stays(trunk: str, dtype: str) -> None:
    args = PlanArgs(64 * GIB, 512, trunk=trunk, dtype=dtype)
    least = make_plan(SPEC, args, FLAT).memory.smallest
    assert make_plan(SPEC, dataclasses.replace(args, memory_bytes=least), FLAT).memory.streamed == ()


def test_fp32_has_room_for_a_contexts_latents_once_more() -> None:
    """Of one conversation at a time."""
    sizes = sizes_of(SPEC, "fp32")
    spaces = [
        make_plan(SPEC, PlanArgs(64 * GIB, context, batch, dtype="fp32"), FLAT).memory.parts["workspace"]
        for context, batch in ((4096, 1), (1, 1), (4096, 3), (1, 3))
    ]
    assert spaces[0] - spaces[1] == spaces[2] - spaces[3] == 4095 * sizes.gathered > 0
    for memory in range(711, 1100, 13):
        plan = make_plan(SPEC, PlanArgs(memory * MIB, dtype="fp32"), FLAT)
        assert plan.memory.planned_bytes <= memory * MIB


def test_a_plan_too_small_to_load_what_it_holds_is_refused() -> None:
    """Though its parts fit: a trunk that is rounded takes more on the way than in the end."""
    sizes = dataclasses.replace(sizes_of(SPEC, trunk="int8"), loading=GIB)
    memory = make_plan(SPEC, PlanArgs(3 * GIB, 512, trunk="int8"), FLAT, sizes=sizes).memory
    check_memory(memory, sizes, PROCESS_BYTES)
    tight = dataclasses.replace(memory, budget_bytes=PROCESS_BYTES + GIB)
    assert tight.planned_bytes < tight.budget_bytes
    with pytest.raises(UsageError, match="create a new one"):
        check_memory(tight, sizes, PROCESS_BYTES)


def test_the_same_inputs_give_the_same_plan_in_another_process() -> None:
    here = plan_json(make_plan(SPEC, PlanArgs(GIB, 1000), SMALL))
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from unit.plan.made_up import *; "
        "from earthshine.plan import *; "
        "print(plan_json(make_plan(made(), PlanArgs(GIB, 1000), machine(memory_bytes=2 * GIB))), end='')"
    )
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tests), str(tests.with_name("tools"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == here


def test_a_plan_is_frozen() -> None:
    plan: Plan = make_plan(SPEC, PlanArgs(GIB), SMALL)
    for value, name in ((plan, "threads"), (plan.memory, "batch"), (plan.forecast["decode at 1"], "seconds")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_models_have_names_of_their_own() -> None:
    names = {model_name(made(storage)) for storage in ("bf16", "fp8", "int4")}
    names |= {model_name(made(max_position_embeddings=4095)), model_name(made(rope_theta=10001.0))}
    assert len(names) == 5
    assert model_name(made()) == model_name(made()) in names
    assert model_name(SPEC).startswith("deepseek_v3-")


def test_sizes_may_be_given() -> None:
    """As the engine does for files whose headers say more than their config."""
    sizes = sizes_of(SPEC)
    bigger = dataclasses.replace(sizes, expert=sizes.expert + MIB)
    plain, other = (make_plan(SPEC, PlanArgs(2 * GIB), SMALL, sizes=given) for given in (None, bigger))
    assert other.memory.parts["expert slots"] - plain.memory.parts["expert slots"] == 32 * MIB
