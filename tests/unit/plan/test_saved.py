"""Plans as files: they are read back unchanged, differences show by line, and invalid files are refused."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earthshine.errors import UsageError
from earthshine.plan import Cost, MemoryPlan, Plan, PlanArgs, make_plan, plan_json, read_plan
from earthshine.plan.budget import PARTS

from .made_up import FLAT, GIB, made

WHOLE = st.integers(0, 1 << 60)
RATE = st.floats(0, allow_nan=False, allow_infinity=False)
COSTS = st.builds(Cost, WHOLE, RATE, st.text(), RATE, RATE, st.dictionaries(st.text(), RATE, max_size=4))
MEMORIES = st.builds(
    MemoryPlan, st.just(1 << 60), st.integers(1, 1 << 31), st.integers(1, 4096), st.integers(1 << 25, 1 << 34),
    st.integers(1, 8192), st.lists(st.text(), max_size=5).map(tuple), st.booleans(), WHOLE, WHOLE,
    st.fixed_dictionaries(dict.fromkeys(PARTS, st.integers(0, 1 << 56))), WHOLE,
)  # fmt: skip
PLANS = st.builds(
    Plan, st.text(), st.text(), st.sampled_from(["bf16", "int8"]), st.sampled_from(["bf16", "fp32"]),
    st.integers(1, 512), WHOLE, MEMORIES, st.dictionaries(st.text(), COSTS, max_size=3),
)  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    """One that streams, so that nothing in it is empty."""
    spec = made("int4", moe_intermediate_size=4096, num_hidden_layers=9, n_routed_experts=96, vocab_size=400_000)
    smallest = make_plan(spec, PlanArgs(64 * GIB, 2048), FLAT).memory.smallest
    found = make_plan(spec, PlanArgs(smallest + (30 << 20), 2048), FLAT)
    assert found.memory.streamed
    assert found.memory.transit_slots
    return found


def refused(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError) as refusal:
        read_plan(path)
    message = str(refusal.value)
    assert path.name in message
    assert message.endswith(".")
    return message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=PLANS)
def test_a_saved_plan_reads_back_equal(tmp_path: Path, found: Plan) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_json(found), encoding="utf-8")
    again = read_plan(path)
    assert again == found
    assert isinstance(again.memory.streamed, tuple)
    assert plan_json(again) == plan_json(found)


def test_a_real_plan_reads_back_through_a_link(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "plan.json").write_text(plan_json(plan))
    (tmp_path / "link").symlink_to("plan.json")
    assert read_plan(tmp_path / "plan.json") == read_plan(tmp_path / "link") == plan


def test_two_plans_differ_by_line(plan: Plan) -> None:
    """One value a line, in a settled order, so that only the lines of what changed are shown."""
    changed = replace(plan, threads=plan.threads + 1, memory=replace(plan.memory, slots_per_layer=77))
    lines = [line for line in difflib.ndiff(plan_json(plan).splitlines(), plan_json(changed).splitlines())]
    shown = [line.strip() for line in lines if line[0] in "+-"]
    assert [line.split(":")[0] for line in shown] == ['-     "slots_per_layer"', '+     "slots_per_layer"',
                                                      '-   "threads"', '+   "threads"']  # fmt: skip
    assert plan_json(plan).count("\n") > 40
    keys = list(json.loads(plan_json(plan)))
    assert keys == sorted(keys)


def objects(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], type]]:
    """Every object of a plan's file that stands for a dataclass, with what the file's messages call it."""
    yield "", found, Plan
    yield "memory", found["memory"], MemoryPlan
    for name in found["forecast"]:
        yield f"forecast.'{name}'", found["forecast"][name], Cost


def test_every_missing_key_is_named(tmp_path: Path, plan: Plan) -> None:
    for index, (_, _, kind) in enumerate(objects(json.loads(plan_json(plan)))):
        for field in fields(kind):
            found = json.loads(plan_json(plan))
            where, holder, _ = list(objects(found))[index]
            del holder[field.name]
            message = refused(tmp_path / "plan.json", found)
            assert f"{where} lacks {field.name};".strip() in message


def test_every_unknown_key_is_named(tmp_path: Path, plan: Plan) -> None:
    for index in range(len(list(objects(json.loads(plan_json(plan)))))):
        found = json.loads(plan_json(plan))
        where, holder, _ = list(objects(found))[index]
        holder["colour"] = 1
        assert f"{where} has 'colour', which is not a field of a plan; create".strip() in refused(
            tmp_path / "plan.json", found
        )


WRONG: list[Any] = [None, -1, 1.5, "12", True, [], {}, [1], {"a": "b"}, 1 << 61, 10**400, -0.5]


def test_every_mistyped_value_is_named(tmp_path: Path, plan: Plan) -> None:
    """Each field with each of a dozen values, except those that its type admits."""
    admitted = {"str": (str,), "int": (), "bool": (bool,), "float": (float, int)}
    for index, (_, _, kind) in enumerate(objects(json.loads(plan_json(plan)))):
        for field in fields(kind):
            for wrong in WRONG:
                kinds = admitted.get(getattr(field.type, "__name__", str(field.type)), ())
                sound = type(wrong) in kinds and (type(wrong) not in (int, float) or 0 <= wrong < 1e300)
                sound |= str(field.type).startswith("collections.abc.Mapping") and wrong == {}  # of parts: below
                sound |= str(field.type).startswith("tuple") and wrong == []
                if sound:
                    continue
                found = json.loads(plan_json(plan))
                where, holder, _ = list(objects(found))[index]
                holder[field.name] = wrong
                message = refused(tmp_path / "plan.json", found)
                assert f"{where}: {field.name}" in message or (not where and f": {field.name}" in message), wrong
                assert "it must be" in message or " lacks " in message or " has 'a'" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trunk", "fp4", "trunk is 'fp4'; it must be one of bf16, int8"),
        ("dtype", "fp16", "dtype is 'fp16'; it must be one of bf16, fp32"),
        ("threads", 0, "threads is 0; it must be 1 to 512"),
        ("threads", 513, "threads is 513"),
        ("memory.batch", 0, "memory.batch is 0; it must be 1 to 4096"),
        ("memory.batch", 4097, "memory.batch is 4097"),
        ("memory.context_tokens", 0, "memory.context_tokens is 0"),
        ("memory.context_tokens", (1 << 31) + 1, "memory.context_tokens is 2147483649"),
        ("memory.pages", 31, "memory.pages is 31; it must be 32"),
        ("memory.pages", (1 << 34) + 1, "memory.pages is 17179869185; it must be 32 to 17179869184"),
        ("memory.prefill_tokens", 0, "memory.prefill_tokens is 0; it must be 1 to 8192"),
        ("memory.prefill_tokens", 8193, "memory.prefill_tokens is 8193"),
        ("memory.streamed", ["layers.0", 1], "memory: streamed is 1; it must be a text"),
        ("memory.parts", {}, "memory.parts must be process, margin, workspace, cache pages, recurrent states, "),
        ("memory.parts", dict.fromkeys((*PARTS, "colour"), 1), "memory.parts must be process, margin, "),
        ("memory.parts", dict.fromkeys(PARTS, 1 << 59), "memory.parts add up to "),
        ("memory.parts", {"trunk": -1}, "memory: parts.'trunk' is -1; it must be a whole number from 0 to"),
        (
            "memory.budget_bytes",
            1 << 62,
            f"is {1 << 62}; it must be a whole number from 0 to {1 << 60} (2^60)",
        ),
        ("format", "earthshine plan 1", "is a plan of another version ('earthshine plan 1', not 'earthshine plan 2')"),
        ("format", "earthshine plan 1", "create a new one with earthshine plan --save"),
        ("format", "earthshine plan 3", "is a plan of another version ('earthshine plan 3'"),
        ("format", "", "is not a plan; its format must be 'earthshine plan 2'; create a new one"),
        ("format", {}, "its format must be"),
    ],
)
def test_values_out_of_bounds_are_refused(tmp_path: Path, plan: Plan, name: str, value: Any, message: str) -> None:
    found = json.loads(plan_json(plan))
    holder = found["memory"] if name.startswith("memory.") else found
    holder[name.removeprefix("memory.")] = value
    assert message in refused(tmp_path / "plan.json", found)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": "earthshine plan 2"}', '{"a": NaN}', " " * (2 << 20)]
)
def test_files_that_are_not_plans_are_refused(tmp_path: Path, text: str) -> None:
    refused(tmp_path / "plan.json", text)


@pytest.mark.parametrize("text", ["1e999", "NaN", "-Infinity", "1" * 5000])
def test_numbers_beyond_a_numbers_range_are_refused(tmp_path: Path, plan: Plan, text: str) -> None:
    raw = plan_json(plan)
    first = raw.index('"seconds": ') + len('"seconds": ')
    refused(tmp_path / "plan.json", raw[:first] + text + raw[raw.index(",", first) :])


def test_invalid_file_is_refused(tmp_path: Path) -> None:
    for name in ("absent.json", "."):
        with pytest.raises(UsageError):
            read_plan(tmp_path / name)
    with pytest.raises(UsageError) as refusal:
        read_plan(tmp_path / "\x1b[31mred")
    assert "\x1b" not in str(refusal.value)


def test_a_plan_that_an_earlier_version_saved_is_refused_with_the_remedy(tmp_path: Path, plan: Plan) -> None:
    """The first version kept the memory plan under another key."""
    found = json.loads(plan_json(plan))
    found |= {"format": "earthshine plan 1", "division": found.pop("memory")}
    message = refused(tmp_path / "plan.json", found)
    assert "another version ('earthshine plan 1', not 'earthshine plan 2'); create a new one" in message
