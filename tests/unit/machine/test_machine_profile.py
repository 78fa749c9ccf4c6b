"""A machine's file: it is read back unchanged, interpolation is right, and errors are named."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine import machine as machine_room
from earthshine.errors import UsageError
from earthshine.machine import (
    Machine,
    check_machine,
    machine_json,
    memory_total,
    own_machine,
    probe,
    profile,
    read_machine,
    save_machine,
)


@pytest.fixture
def written(machine: Machine, tmp_path: Path):
    """Reads the machine's file back after some of its fields were changed, or one dropped, by dotted paths."""

    def read(changes: dict[str, object] | None = None, drop: str | None = None) -> Machine:
        found = json.loads(machine_json(machine))
        for path, value in (changes or {}).items():
            _set(found, path, value)
        if drop is not None:
            *above, last = drop.split(".")
            inner = found
            for key in above:
                inner = inner[int(key) if key.isdigit() else key]
            del inner[last]
        file = tmp_path / "machine.json"
        file.write_text(json.dumps(found, allow_nan=True))
        return read_machine(file)

    return read


def _set(found: dict, path: str, value: object) -> None:
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in above:
        found = found[key]
    found[last] = value


class TestRoundTrip:
    def test_what_is_written_is_read_back_exactly(self, machine: Machine, tmp_path: Path) -> None:
        file = tmp_path / "new" / "folder" / "machine.json"
        save_machine(machine, file)
        assert read_machine(file) == machine
        assert machine_json(read_machine(file)) == machine_json(machine)
        assert [path.name for path in file.parent.iterdir()] == ["machine.json"]
        assert file.stat().st_mode & 0o777 == 0o644

    def test_a_described_machine_has_no_date(self, machine: Machine) -> None:
        bare = replace(machine, measured=None, identity=None, network=None, watts=None, price_usd=None)
        assert check_machine(bare) == bare

    @given(rate=st.floats(1e8, 1e15), seconds=st.floats(1e-9, 1.0))
    def test_every_figure_is_exact(self, rate: float, seconds: float) -> None:
        path = machine_room.described()["mini-24gb"]
        changed = replace(read_machine(path), memory_read=rate, layer_seconds=seconds)
        assert check_machine(changed) == changed

    def test_a_file_that_was_there_is_replaced_whole(self, machine: Machine, tmp_path: Path) -> None:
        file = tmp_path / "machine.json"
        file.write_text("x" * 100_000)
        save_machine(machine, file)
        assert read_machine(file) == machine

    def test_optional_fields_may_be_left_out(self, written) -> None:
        for name in ("network", "watts", "price_usd"):
            assert getattr(written(drop=name), name) is None

    def test_memory_may_be_a_size(self, written) -> None:
        assert written({"memory_bytes": "24GiB"}).memory_bytes == 24 << 30
        assert written({"memory_bytes": "24GB"}).memory_bytes == 24 * 10**9

    def test_nothing_can_be_changed(self, machine: Machine) -> None:
        with pytest.raises(TypeError):
            check_machine(machine).products["bf16"] = ()

    @pytest.mark.parametrize("place", ["a/file/machine.json", "a/folder"])
    def test_a_place_that_can_t_be_written_is_named(self, machine: Machine, tmp_path: Path, place: str) -> None:
        (tmp_path / "a" / "folder").mkdir(parents=True)
        (tmp_path / "a" / "file").touch()
        with pytest.raises(UsageError, match=r"can't be written: .*; name another file"):
            save_machine(machine, tmp_path / place)
        assert not [path for path in (tmp_path / "a").iterdir() if path.name.startswith("tmp")]


class TestRates:
    def test_a_disk_s_rate_is_of_the_nearest_block_and_depth_below(self, machine: Machine) -> None:
        mib = 1 << 20
        for block, depth, expected in (
            (4096, 1, 1e8 / 3), (mib - 1, 9, 1e8 / 3), (1, 1, 1e8 / 3), (mib, 1, 2e9), (mib, 3, 2e9), (mib, 4, 2.5e9),
            (mib, 100, 2.5e9), (24_772_632, 4, 2.5e9), (mib, 0, 2e9),
        ):  # fmt: skip
            assert machine.disk_rate(block, depth) == expected, (block, depth)

    def test_products_lie_on_a_line_in_logarithms(self, machine: Machine) -> None:
        (_, one), (_, four), (_, many) = machine.products["bf16"]
        assert [machine.product_flops("bf16", rows) for rows in (1, 4, 512)] == [one, four, many]
        assert machine.product_flops("bf16", 2) == pytest.approx((one * four) ** 0.5)
        assert machine.product_flops("bf16", 4 * 128**0.25) == pytest.approx(four**0.75 * many**0.25)

    def test_beyond_the_points_rates_are_constant(self, machine: Machine) -> None:
        assert machine.product_flops("int4", 0.25) == machine.products["int4"][0][1]
        assert machine.product_flops("int4", 1e9) == machine.products["int4"][-1][1]
        assert machine.attention_flops(1) == 4.5e11
        assert machine.attention_flops(1 << 30) == 8.1e11
        assert machine.attention_flops(32) == pytest.approx((4.5e11 * 7.2e11) ** 0.5)

    def test_a_single_point_holds_everywhere(self, machine: Machine) -> None:
        flat = replace(machine, attention=((64, 5e11),))
        assert {flat.attention_flops(rows) for rows in (1, 64, 1e6)} == {5e11}

    def test_an_unknown_format_is_named(self, machine: Machine) -> None:
        with pytest.raises(UsageError, match=r"'mxfp4' is not a format .* it has bf16, int4, fp8, int8"):
            machine.product_flops("mxfp4", 1)


WRONG_NUMBERS = [True, "12 GB/s", "5e9", None, -1.0, 0, [], {}, float("nan"), float("inf"), 10**400, 1e300]
NUMBERS = [
    "memory_read", "layer_seconds", "disk.0.bytes_per_second", "products.int4.1.1", "attention.2.1",
    "network.bytes_per_second", "network.round_trip_seconds", "watts", "price_usd",
]  # fmt: skip
INTEGERS = [
    "processors", "memory_bytes", "disk.1.block_bytes", "disk.1.depth", "products.fp8.2.0", "attention.0.0",
    "identity.processors", "identity.memory_bytes",
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("value", WRONG_NUMBERS, ids=repr)
    @pytest.mark.parametrize("field", NUMBERS + INTEGERS)
    def test_numbers_out_of_bounds_are_refused_by_name(self, written, field: str, value: object) -> None:
        if value is None and field in ("watts", "price_usd"):
            return
        with pytest.raises(UsageError) as refusal:
            written({field: value})
        text = str(refusal.value)
        assert "machine.json" in text
        if not isinstance(value, float) or math.isfinite(value):  # else it is no JSON
            named = re.sub(r"\.(\d+)\.(\d)$", r"[\1]", field)
            assert re.sub(r"\.(\d+)", r"[\1]", named) in text
            assert "must be" in text
        assert len(text) < 400

    @pytest.mark.parametrize("value", [1.5, 2.0, "2"])
    @pytest.mark.parametrize("field", ["processors", "disk.1.depth", "attention.0.0"])
    def test_a_count_is_a_whole_number(self, written, field: str, value: object) -> None:
        with pytest.raises(UsageError, match="whole number"):
            written({field: value})

    def test_a_unit_is_called_what_it_is(self, written) -> None:
        with pytest.raises(
            UsageError, match=r"memory_read is '12 GB/s'; it must be a plain number of bytes per second"
        ):
            written({"memory_read": "12 GB/s"})
        with pytest.raises(UsageError, match=r"memory_bytes is '24 apples'; it must be .* such as 24GiB"):
            written({"memory_bytes": "24 apples"})
        with pytest.raises(UsageError, match=r"disk\[2\].bytes_per_second is 2.5; it must be .* from 1e\+06 to 1e\+12"):
            written({"disk.2.bytes_per_second": 2.5})

    @pytest.mark.parametrize(
        "field",
        ["name", "source", "measured", "identity", "processors", "memory_bytes", "memory_read", "disk", "products",
         "attention", "layer_seconds", "products.fp8", "identity.cpu_model", "network.round_trip_seconds",
         "disk.0.depth"],
    )  # fmt: skip
    def test_a_missing_field_is_named(self, written, field: str) -> None:
        with pytest.raises(UsageError, match=re.escape(re.sub(r"\.(\d+)", r"[\1]", field)) + " is missing"):
            written(drop=field)

    @pytest.mark.parametrize("where", ["", "products.", "identity.", "network.", "disk.0."])
    def test_an_unknown_field_is_named(self, written, where: str) -> None:
        with pytest.raises(UsageError, match=r"'memroy\\n' is not a known field; .* has "):
            written({f"{where}memroy\n": 1})

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"products.bf16": [[2, 1e10]]}, r"products.bf16\[0\], its rows is 2; it must be 1"),
            ({"products.bf16": [[1, 1e10], [1, 2e10]]}, r"products.bf16\[1\], its rows is 1; .* more than 1"),
            ({"attention": [[64, 1e10], [16, 1e10]]}, r"attention\[1\], its rows is 16; .* more than 64: rows ascend"),
            ({"disk.2.depth": 1}, r"disk\[2\] is \[1048576, 1\]; it must be after \[1048576, 1\]"),
            ({"disk.0.block_bytes": 1 << 21}, r"disk\[1\] is .* entries ascend"),
            ({"disk": []}, r"disk is \[\]; it must be a list of 1 to 64"),
            ({"disk": {}}, "disk is an object of 0 entries; .* list of 1 to 64 objects"),
            ({"disk": [5]}, r"disk\[0\] is 5; it must be an object with block_bytes"),
            ({"attention": [[1, 1e10]] * 65}, "list of 1 to 64 pairs"),
            ({"attention.0": [1]}, r"attention\[0\] is \[1\]; it must be a pair"),
            ({"attention.0": 7}, r"attention\[0\] is 7; it must be a pair"),
            ({"products": [1]}, "products is .* object with bf16, int4, fp8, int8"),
            ({"network": 5}, "network is 5; it must be an object"),
            ({"identity": "me"}, "identity is 'me'; it must be an object"),
            ({"identity": None}, "identity is null; it must be given, since measured is"),
            ({"measured": None}, "measured is null; it must be given, since identity is"),
            ({"measured": "yesterday"}, "measured is 'yesterday'; .* such as 2026-01-31"),
            ({"measured": "20260131"}, "measured is '20260131'"),
            ({"measured": "2026-02-30"}, "measured is '2026-02-30'"),
            ({"measured": 20260131}, "measured is 20260131"),
            ({"name": ""}, "name is ''; it must be a text of 1 to 80"),
            ({"name": "a\x1b[31m"}, r"name is 'a\\x1b\[31m'"),
            ({"name": "x" * 81}, "name is 'xxx"),
            ({"source": "two\nlines"}, "source is 'two.nlines'; .* on one line"),
            ({"name": 5}, "name is 5"),
        ],
    )
    def test_what_else_is_wrong_is_named(self, written, changes: dict[str, object], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            written(changes)

    @pytest.mark.parametrize(
        ("raw", "text"),
        [
            (b"", "is not JSON"),
            (b"[]", "holds no JSON object"),
            (b"{}", "name is missing; a machine has name, source"),
            (b'{"name": NaN}', "holds NaN"),
            (b'{"name": 1e999}', "beyond the range"),
            (b'{"name": 1, "name": 2}', "twice"),
            (b"\xff", "not UTF-8"),
            (b'{"a":' * 50 + b"1" + b"}" * 50, "levels deep"),
            (b" " * (profile.MAX_FILE_BYTES + 1), "more than 1048576 bytes"),
            (b'{"name": ' + b"9" * 5000 + b"}", "too many digits"),
        ],
        ids=lambda value: str(value[:12]),
    )
    def test_files_that_are_not_profiles_are_refused(self, tmp_path: Path, raw: bytes, text: str) -> None:
        file = tmp_path / "machine.json"
        file.write_bytes(raw)
        with pytest.raises(UsageError, match=text):
            read_machine(file)

    def test_unreadable_files_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for place, text in (("none", "No such file"), (".", "not a regular file"), ("pipe", "not a regular file")):
            with pytest.raises(UsageError, match=text):
                read_machine(tmp_path / place)
        with pytest.raises(UsageError, match="is not a path"):
            read_machine(Path("a\0b"))

    @pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, 1e99])
    def test_a_figure_that_no_file_may_hold_is_not_written(self, machine: Machine, rate: float) -> None:
        with pytest.raises(UsageError):
            check_machine(replace(machine, memory_read=rate))


class TestOwnMachine:
    @pytest.fixture
    def own(self, machine: Machine) -> Machine:
        return replace(machine, identity=probe.identity())

    def test_there_may_be_none(self, tmp_path: Path) -> None:
        assert own_machine(tmp_path / "machine.json") is None
        assert own_machine(tmp_path / "no folder" / "machine.json") is None

    def test_this_machine_s_is_taken_with_the_memory_of_now(self, own: Machine, tmp_path: Path) -> None:
        save_machine(own, tmp_path / "machine.json")
        assert own_machine(tmp_path / "machine.json") == replace(own, memory_bytes=memory_total())

    @pytest.mark.parametrize(
        ("field", "value"),
        [("cpu_model", "Another CPU"), ("processors", 4096), ("memory_bytes", 1 << 40), ("instruction_set", "sse")],
    )
    def test_another_machine_s_is_refused_by_field(self, own: Machine, tmp_path: Path, field: str, value) -> None:
        save_machine(replace(own, identity={**own.identity, field: value}), tmp_path / "machine.json")
        with pytest.raises(UsageError, match=f"another machine: its {field} is .* with earthshine bench machine"):
            own_machine(tmp_path / "machine.json")

    @pytest.mark.parametrize("variable", ["EARTHSHINE_CPU", "EARTHSHINE_KERNELS"])
    def test_rates_of_other_kernels_are_refused(self, machine: Machine, tmp_path: Path, monkeypatch, variable) -> None:
        """Saved with one choice, read with another: in each the profile that was measured with it is taken."""
        monkeypatch.setenv("EARTHSHINE_KERNELS", "reference")
        save_machine(replace(machine, identity=probe.identity()), tmp_path / "reference.json")
        assert own_machine(tmp_path / "reference.json") is not None
        monkeypatch.delenv("EARTHSHINE_KERNELS")
        monkeypatch.setenv(variable, "portable")
        with pytest.raises(UsageError, match=r"'reference', and here it is 'portable' \(EARTHSHINE_CPU and"):
            own_machine(tmp_path / "reference.json")
        save_machine(replace(machine, identity=probe.identity()), tmp_path / "portable.json")
        assert own_machine(tmp_path / "portable.json") is not None

    def test_a_little_memory_more_is_the_same_machine(self, own: Machine, tmp_path: Path) -> None:
        here = own.identity["memory_bytes"]
        for share, same in ((1.015, True), (0.985, True), (1.03, False), (0.97, False)):
            near = replace(own, identity={**own.identity, "memory_bytes": int(share * here)})
            save_machine(near, tmp_path / "machine.json")
            if same:
                assert own_machine(tmp_path / "machine.json") is not None
            else:
                with pytest.raises(UsageError, match="memory_bytes"):
                    own_machine(tmp_path / "machine.json")

    def test_a_described_machine_is_none_s(self, own: Machine, tmp_path: Path) -> None:
        save_machine(replace(own, measured=None, identity=None), tmp_path / "machine.json")
        with pytest.raises(UsageError, match="describes a machine"):
            own_machine(tmp_path / "machine.json")

    def test_a_damaged_file_is_an_error_not_an_absent_one(self, tmp_path: Path) -> None:
        (tmp_path / "machine.json").write_text("{")
        with pytest.raises(UsageError, match="is not JSON"):
            own_machine(tmp_path / "machine.json")
        (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
        with pytest.raises(UsageError, match="can't be opened"):
            own_machine(tmp_path / "dangling.json")
