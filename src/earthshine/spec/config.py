"""From a config.json on disk to a ModelSpec.

The file is untrusted and read as `earthshine.untrusted` says. A config.json that a person names is read wherever its
links lead; one that a folder holds must lie in that folder. Refuses files above 4 MiB.
"""

from pathlib import Path

from earthshine.errors import SpecError
from earthshine.spec.families import read_model
from earthshine.spec.model import ModelSpec
from earthshine.untrusted import parse_object, read_file, require_depth, resolve_in, shown

MAX_CONFIG_BYTES = 4 * 2**20  # published configs have up to 13 kB


def load_spec(path: Path) -> ModelSpec:
    """The model in a checkpoint folder, or in the config.json itself. Raises SpecError or Unsupported."""
    return spec_from_config(read_config(path))


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
    real = resolve_in(path, "config.json", SpecError) if named != path else named.resolve()
    return parse_object(read_file(real, str(named), MAX_CONFIG_BYTES, SpecError), str(named), SpecError)
