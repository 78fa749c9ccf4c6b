"""Reads a ModelSpec from a config.json, and from an hf_quant_config.json beside it the format of the weights.

The files are untrusted and read as described in `earthshine.untrusted`. A config.json that is given by its path may be
a link to any place; one that is found in a folder must be within the folder. Refuses files above 4 MiB.
"""

import os
from pathlib import Path

from earthshine.errors import SpecError, Unsupported
from earthshine.spec.families import read_model
from earthshine.spec.families.reader import says_nothing
from earthshine.spec.model import ModelSpec
from earthshine.untrusted import parse_object, read_file, real_path, require_depth, resolve_in, shown

QUANTIZATION_NAME = "hf_quant_config.json"
MAX_CONFIG_BYTES = 4 * 2**20  # published configs have up to 13 kB


def load_spec(path: Path) -> ModelSpec:
    """The model in a checkpoint folder, or in the config.json itself. Raises SpecError or Unsupported."""
    spec = spec_from_config(read_config(path))
    _refuse_other_quantization(path if path.is_dir() else path.parent)
    return spec


def _refuse_other_quantization(folder: Path) -> None:
    """NVIDIA's exports may say in a file of their own alone that the weights are quantised, and in which form."""
    if not os.path.lexists(folder / QUANTIZATION_NAME):
        return
    real = resolve_in(folder, QUANTIZATION_NAME, SpecError)
    found = parse_object(read_file(real, QUANTIZATION_NAME, MAX_CONFIG_BYTES, SpecError), QUANTIZATION_NAME, SpecError)
    block = found.get("quantization", {})
    if not isinstance(block, dict):
        raise SpecError(f"{QUANTIZATION_NAME}: quantization is {shown(block)}; it must be an object.")
    for key in ("quant_algo", "kv_cache_quant_algo"):
        if not says_nothing(block.get(key)):
            raise Unsupported(
                f"{QUANTIZATION_NAME}: quantization.{key} is {shown(block[key])}, and {shown(block[key])} is not "
                "implemented; take the release that its publisher quantised, or bf16."
            )


def spec_from_config(config: dict[str, object]) -> ModelSpec:
    """The model that a parsed config.json describes. Raises SpecError, or Unsupported naming what is missing."""
    if not isinstance(config, dict):
        raise SpecError(f"config.json holds a {type(config).__name__}; it must hold a JSON object.")
    require_depth(config, "config.json", SpecError)
    return read_model(config)


def read_config(path: Path) -> dict[str, object]:
    """The JSON object in `path`, a config.json or a folder that holds one, of at most 4 MiB. Raises SpecError."""
    try:
        named = path / "config.json" if path.is_dir() else path
        if not named.exists():
            raise SpecError(f"{shown(named)} does not exist; a checkpoint folder must hold a config.json.")
    except OSError as error:
        raise SpecError(f"{shown(path)} can't be read: {error.strerror}.") from None
    real = resolve_in(path, "config.json", SpecError) if named != path else real_path(named, SpecError)
    return parse_object(read_file(real, str(named), MAX_CONFIG_BYTES, SpecError), str(named), SpecError)
