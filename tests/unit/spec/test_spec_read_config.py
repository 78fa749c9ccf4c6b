"""A config.json is read from a file or its folder; anything but a sound JSON object is refused before it is used."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from earthshine.errors import SpecError, Unsupported
from earthshine.spec import load_spec, read_config, spec_from_config
from earthshine.spec.config import MAX_CONFIG_BYTES
from earthshine.untrusted import MAX_DEPTH


def _write(folder: Path, raw: bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(raw)
    return path


def test_a_folder_and_the_file_in_it_read_the_same(tmp_path: Path, k26: dict[str, Any]) -> None:
    path = _write(tmp_path, json.dumps(k26).encode())
    assert read_config(path) == read_config(tmp_path) == k26
    assert load_spec(tmp_path) == spec_from_config(k26)


def test_a_link_to_the_file_is_followed(tmp_path: Path) -> None:
    """Model caches keep a folder of links."""
    (tmp_path / "blobs").mkdir()
    target = _write(tmp_path / "blobs", b'{"a": 1}')
    (tmp_path / "config.json").symlink_to(target)
    assert read_config(tmp_path) == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'{"b": {"a": 1, "c": 2, "a": 3}}', "'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, None),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels deep"),
        (b'{"a":' + b"[" * 200_000, "levels deep"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "levels deep"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path: Path, raw: bytes, says: str | None) -> None:
    path = _write(tmp_path, raw)
    if says is None:
        assert "a" in read_config(path)
        return
    with pytest.raises(SpecError, match=says):
        read_config(path)


def test_a_file_over_the_size_bound_is_refused(tmp_path: Path) -> None:
    fits = b'{"a": "' + b"x" * (MAX_CONFIG_BYTES - 9) + b'"}'
    assert len(read_config(_write(tmp_path, fits))["a"]) == MAX_CONFIG_BYTES - 9  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="more than 4194304 bytes"):
        read_config(_write(tmp_path, fits + b" "))


def test_a_path_that_holds_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json' does not exist"):
        read_config(tmp_path)
    with pytest.raises(SpecError, match="absent' does not exist"):
        read_config(tmp_path / "absent")
    with pytest.raises(SpecError, match="below-a-file' does not exist"):
        read_config(_write(tmp_path, b"{}") / "below-a-file")
    with pytest.raises(SpecError, match=r"'a\\x00b' does not exist"):
        read_config(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(SpecError, match="not a regular file"):
        read_config(tmp_path)


def test_a_config_in_memory_is_bounded_too() -> None:
    deep: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        deep = {"vision_config": deep}
    with pytest.raises(SpecError, match="levels deep"):
        spec_from_config(deep)
    with pytest.raises(SpecError, match="holds a list"):
        spec_from_config([])  # type: ignore[arg-type]


def _exported(folder: Path, config: dict[str, Any], quantization: object) -> Path:
    """A folder whose config.json says nothing of quantisation, and NVIDIA's own file beside it."""
    _write(folder, json.dumps({key: value for key, value in config.items() if key != "quantization_config"}).encode())
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    return folder


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_quantisation_that_only_its_own_file_names_is_refused(
    tmp_path: Path, k2_instruct: dict[str, Any], name: str
) -> None:
    _exported(tmp_path, k2_instruct, {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16})
    with pytest.raises(Unsupported, match=r"hf_quant_config.json: quantization.quant_algo is 'NVFP4'"):
        load_spec(tmp_path / name)
    _exported(tmp_path, k2_instruct, {"quant_algo": None, "kv_cache_quant_algo": "FP8"})
    with pytest.raises(Unsupported, match="kv_cache_quant_algo is 'FP8'"):
        load_spec(tmp_path / name)


@pytest.mark.parametrize("quantization", [{}, {"quant_algo": None, "kv_cache_quant_algo": None}])
def test_quantisation_file_without_effect_is_accepted(
    tmp_path: Path, k2_instruct: dict[str, Any], quantization: object
) -> None:
    assert load_spec(_exported(tmp_path, k2_instruct, quantization)).expert_storage == "bf16"


@pytest.mark.parametrize("raw", ["[]", "{", '{"quantization": 4}'])
def test_a_quantisation_file_that_is_malformed_is_refused(
    tmp_path: Path, k2_instruct: dict[str, Any], raw: str
) -> None:
    _exported(tmp_path, k2_instruct, {})
    (tmp_path / "hf_quant_config.json").write_text(raw)
    with pytest.raises(SpecError, match=r"hf_quant_config.json"):
        load_spec(tmp_path)
