"""A value of a wrong type, anywhere in a config, is refused by its key, unless the key is not read."""

import copy
import re
from typing import Any

import pytest

from earthshine.errors import SpecError
from earthshine.spec import spec_from_config

Config = dict[str, Any]
Path = tuple[str | int, ...]

VALUES: tuple[Any, ...] = (5, 2.5, True, False, "text", "", [], ["a"], [[]], {}, {"a": 1})
# What says nothing of the decoder.
UNREAD = {"attention_dropout", "ep_size", "ignore_index", "observer", "observer_kwargs", "temperature", "top_k",
          "use_cache", "vision_config"}  # fmt: skip


def _two_quantizations(k26: Config) -> Config:
    return k26 | {"quantization_config": copy.deepcopy(k26["text_config"]["quantization_config"])}


def _outer_quantization(k26: Config) -> Config:
    return k26 | {"quantization_config": k26["text_config"].pop("quantization_config")}


def _two_spellings(k26: Config) -> Config:
    text = k26["text_config"]
    text |= {"rope_parameters": copy.deepcopy(text["rope_scaling"]), "torch_dtype": text["dtype"]}
    return k26


CONFIGS = {
    "k26": lambda config: config,
    "k26 with two quantizations": _two_quantizations,
    "k26 with its quantization outside": _outer_quantization,
    "k26 with two spellings": _two_spellings,
    "k2_instruct": lambda config: config,
    "deepseek_v3": lambda config: config,
    "moonlight": lambda config: config,
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    found: Config = CONFIGS[request.param](request.getfixturevalue(request.param.split()[0]))
    return found


def _paths(value: object, path: Path = ()) -> list[Path]:
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    return [found for key, inner in entries for found in ((*path, key), *_paths(inner, (*path, key)))]


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)


def _holder(config: Config, path: Path) -> Any:
    inner: Any = config
    for key in path[:-1]:
        inner = inner[key]
    return inner


def _of_another_type(config: Config) -> list[tuple[Path, Any]]:
    """Every place with every value of another type than the one that is there; null is a value of any."""
    found = []
    for path in _paths(config):
        there = _holder(config, path)[path[-1]]
        found += [(path, value) for value in VALUES if there is not None and _kind(value) is not _kind(there)]
    return found


def _refusal(config: Config, plain: object) -> str:
    """What is wrong with the config; empty where it reads as `plain`."""
    try:
        found = spec_from_config(config)
    except SpecError as error:
        return str(error)
    assert found == plain
    return ""


def test_a_value_of_a_wrong_type_is_refused_by_its_key(config: Config) -> None:
    plain, changes = spec_from_config(config), _of_another_type(config)
    assert len(changes) > 300
    refused = 0
    for path, value in changes:
        changed = copy.deepcopy(config)
        _holder(changed, path)[path[-1]] = value
        message, keys = _refusal(changed, plain), [key for key in path if isinstance(key, str)]
        if message:
            # Where two spellings of an object disagree, it is the object that is named.
            named = keys[1] if "another spelling" in message and len(keys) > 1 else keys[-1]
            assert re.search(rf"\b{re.escape(named)}\b", message), (path, value, message)
            assert "differ" not in message, (path, value, message)
            refused += 1
        else:
            nothing = value in (False, "", [], {}) and keys[-1] in ("eos_token_id", "kv_cache_scheme")
            assert nothing or UNREAD.intersection(keys), (path, value)
    assert refused > len(changes) / 2


@pytest.mark.parametrize("value", [5, "int4", [], [{}], True])
def test_quantization_that_is_not_an_object_is_refused(k26: Config, value: object) -> None:
    k26["quantization_config"] = value  # beside the one in text_config
    with pytest.raises(SpecError, match=r"quantization_config is .*; it must be an object\.$"):
        spec_from_config(k26)


def test_two_quantizations_must_agree_once_each_is_sound(k26: Config, k2_instruct: Config) -> None:
    both = _two_quantizations(k26)
    assert spec_from_config(both) == spec_from_config(k26)
    both["quantization_config"] = k2_instruct["quantization_config"]
    with pytest.raises(SpecError, match=r"quantization_config and text_config\.quantization_config differ"):
        spec_from_config(both)
