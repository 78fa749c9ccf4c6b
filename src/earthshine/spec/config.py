"""From a config.json on disk to a ModelSpec.

The file is untrusted: its size and nesting are bounded before anything is made of it, a key given twice is refused
because readers disagree on which counts, and numbers that JSON does not have (NaN, Infinity, 1e999) are refused.
"""

import json
import math
import stat
from pathlib import Path
from typing import NoReturn

from earthshine.errors import SpecError
from earthshine.spec.families import read_model
from earthshine.spec.model import ModelSpec

MAX_CONFIG_BYTES = 4 * 2**20  # published configs have up to 13 kB
MAX_DEPTH = 32  # published configs nest 6 deep


def load_spec(path: Path) -> ModelSpec:
    """The model in a checkpoint folder, or in the config.json itself. Raises SpecError or Unsupported."""
    return spec_from_config(read_config(path))


def spec_from_config(config: dict[str, object]) -> ModelSpec:
    """The model that a parsed config.json describes. Raises SpecError, or Unsupported naming what is missing."""
    if not isinstance(config, dict):
        raise SpecError(f"config.json holds a {type(config).__name__}; it must hold a JSON object.")
    _check_depth(config, "config.json")
    return read_model(config)


def read_config(path: Path) -> dict[str, object]:
    """The JSON object in `path`, a config.json or a folder that holds one, of at most 4 MiB. Raises SpecError."""
    name, raw = _read_bounded(Path(path))
    try:
        config = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError:
        raise SpecError(f"{name} is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise SpecError(f"{name} nests more than {MAX_DEPTH} levels deep.") from None
    except ValueError:  # an integer of more digits than Python converts
        raise SpecError(f"{name} holds a number with too many digits.") from None
    if not isinstance(config, dict):
        raise SpecError(f"{name} holds no JSON object; a config.json begins with '{{'.")
    _check_depth(config, name)
    return config


def _read_bounded(path: Path) -> tuple[str, bytes]:
    """The file's name for messages and its bytes. Only a regular file is opened: a pipe could block for ever."""
    try:
        if path.is_dir():
            path = path / "config.json"
        if not stat.S_ISREG(path.stat().st_mode):
            raise SpecError(f"{path} is not a regular file.")
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist; a checkpoint folder must hold a config.json.") from None
    except OSError as error:
        raise SpecError(f"{path} can't be read: {error.strerror}.") from None
    except ValueError:
        raise SpecError(f"{str(path)!a} is not a path.") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise SpecError(f"{path} has more than {MAX_CONFIG_BYTES} bytes; a config.json has a few thousand.")
    return str(path), raw


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise SpecError(f"config.json gives the key {twice[:60]!a} twice in one object; it must stand once.")
    return found


def _no_constant(text: str) -> NoReturn:
    raise SpecError(f"config.json holds {text}, which is not a JSON number.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SpecError(f"config.json holds {text[:20]}, which is beyond the range of a number.")
    return value


def _check_depth(config: dict[str, object], name: str) -> None:
    level: list[object] = [config]
    for _ in range(MAX_DEPTH + 1):
        containers = [value for value in level if isinstance(value, (dict, list))]
        if not containers:
            return
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
    raise SpecError(f"{name} nests more than {MAX_DEPTH} levels deep.")
