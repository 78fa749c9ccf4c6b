"""A typed reader of one object of a config.json: every key is required, expected to equal, or ignored by name.

All problems are collected, so that they are reported together: a getter that finds a problem records it and returns a
stand-in within bounds, and `finish` raises before a caller can use what was built from it. A key that was not read is
refused by name, because it may change the mathematics, unless its value has no effect (null, false or empty) or it is a
note of the library that wrote the file. Both spellings of a key are read where published configs differ.
"""

from collections.abc import Iterable

from earthshine.errors import SpecError, Unsupported
from earthshine.untrusted import shown

SIZE_MAX = 2**31
ALIASES: dict[str, tuple[str, ...]] = {
    "n_routed_experts": ("num_experts", "num_local_experts"),
    "num_experts_per_tok": ("num_experts_per_token",),
    "n_shared_experts": ("num_shared_experts",),
    "norm_topk_prob": ("moe_renormalize",),
    "scoring_func": ("moe_router_activation_func",),
    "n_group": ("num_expert_group",),
    "rope_scaling": ("rope_parameters",),
    "max_position_embeddings": ("model_max_length",),
    "type": ("rope_type",),
    "torch_dtype": ("dtype",),
}
# How a library computed or what it patched, not what the model is.
_NOTES = ("_attn_implementation", "_experts_implementation", "unsloth_")
_SHOWN_PROBLEMS = 8
_ABSENT = object()
_PLAIN_CHARACTERS = 60


def _plain(key: object) -> str:
    """A key as it is where it is a short word, else as `shown`."""
    plain = isinstance(key, str) and len(key) <= _PLAIN_CHARACTERS and key.isascii() and key.isidentifier()
    return str(key) if plain else shown(key)


def same(left: object, right: object) -> bool:
    """Equality of JSON values in which true is not 1 and 1 is not 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def says_nothing(value: object) -> bool:
    """Whether a value has no effect: null, false, empty, or an object of such values."""
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    return value is None or value is False or value in ("", [])


class Problems:
    """What is wrong with a config, collected over all its objects."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._malformed = False

    def malformed(self, text: str) -> None:
        if text not in self._texts:  # a key may be looked up more than once
            self._texts.append(text)
        self._malformed = True

    def unsupported(self, text: str) -> None:
        self._texts.append(text)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def raise_any(self) -> None:
        """Raise SpecError if anything is malformed, else Unsupported if there is any problem."""
        if not self._texts:
            return
        text = "; ".join(self._texts[:_SHOWN_PROBLEMS])
        if len(self._texts) > _SHOWN_PROBLEMS:
            text += f"; and {len(self._texts) - _SHOWN_PROBLEMS} more"
        raise (SpecError if self._malformed else Unsupported)(f"config.json: {text}.")


class KeyReader:
    """One object of the config; nested objects are read by readers from `block`, which share the problems."""

    def __init__(self, config: dict[str, object], where: str = "", problems: Problems | None = None) -> None:
        self._config = config
        self._where = where
        self._read: set[str] = set()
        self._blocks: list[KeyReader] = []
        self.problems = Problems() if problems is None else problems

    def name(self, key: str) -> str:
        """The full path of a key as it is spelled in this config, for messages."""
        return self._where + self._find(key)[0]

    def _find(self, key: str) -> tuple[str, object]:
        """The spelling in use and its value. Null counts as not given where another spelling is given."""
        spellings = [name for name in (key, *ALIASES.get(key, ())) if name in self._config]
        self._read.update(spellings)
        given = [name for name in spellings if self._config[name] is not None] or spellings
        if not given:
            return key, _ABSENT
        first, *others = given
        for other in others:
            if not same(self._config[first], self._config[other]):
                value, whole = shown(self._config[other]), f"{self._where}{first}"
                self.problems.malformed(
                    f"{self._where}{other} is {value}; it contradicts {whole}, another spelling of this key"
                )
        return first, self._config[first]

    def _complain(self, name: str, value: object, right: str) -> None:
        state = "is missing" if value is _ABSENT else f"is {shown(value)}"
        self.problems.malformed(f"{self._where}{name} {state}; it must be {right}")

    def given(self, key: str) -> bool:
        """Whether the key is present, also with null."""
        return self._find(key)[1] is not _ABSENT

    def has(self, key: str) -> bool:
        """Whether the key is given and not null."""
        return self._find(key)[1] not in (_ABSENT, None)

    def integer(self, key: str, low: int = 1, high: int = SIZE_MAX, *, default: int | None = None) -> int:
        """An integer (true and 1.0 are none) within bounds; `default` where the key is absent or null."""
        name, value = self._find(key)
        if default is not None and (value is _ABSENT or value is None):
            return default
        if type(value) is int and low <= value <= high:
            return value
        self._complain(name, value, f"an integer from {low} to {high}")
        return low

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number within bounds; `default` where the key is absent or null."""
        name, value = self._find(key)
        if default is not None and (value is _ABSENT or value is None):
            return default
        if type(value) in (int, float) and low <= value <= high:  # type: ignore[operator]  # NaN fails both comparisons
            return float(value)  # type: ignore[arg-type]
        self._complain(name, value, f"a number from {low:g} to {high:g}")
        return low

    def flag(self, key: str) -> bool:
        name, value = self._find(key)
        if isinstance(value, bool):
            return value
        self._complain(name, value, "true or false")
        return False

    def strings(self, key: str, most: int = 256) -> list[str]:
        """A list of at most `most` strings."""
        name, value = self._find(key)
        if isinstance(value, list) and len(value) <= most and all(isinstance(entry, str) for entry in value):
            return [str(entry) for entry in value]
        self._complain(name, value, f"a list of at most {most} strings")
        return []

    def integers(self, key: str, low: int, high: int) -> list[int]:
        """A list of integers within bounds."""
        name, value = self._find(key)
        if isinstance(value, list) and all(type(entry) is int and low <= entry <= high for entry in value):
            return list(value)
        self._complain(name, value, f"a list of integers from {low} to {high}")
        return []

    def token_ids(self, key: str, vocab_size: int) -> set[int]:
        """The ids under a key that holds one id, a list of ids, null or nothing."""
        name, value = self._find(key)
        entries = value if isinstance(value, list) else [] if value is _ABSENT or value is None else [value]
        if len(entries) <= 256 and all(type(entry) is int and 0 <= entry < vocab_size for entry in entries):
            return set(entries)
        self._complain(name, value, f"a token id or a list of token ids below vocab_size ({vocab_size})")
        return set()

    def equal(self, key: str, *allowed: object, optional: bool = False) -> object:
        """The one of `allowed` that the key holds; any other value is Unsupported. Absent is right if `optional`."""
        name, value = self._find(key)
        if any(same(value, choice) for choice in allowed) or (optional and value is _ABSENT):
            return None if value is _ABSENT else value
        if value is _ABSENT:
            self._complain(name, value, _choices(allowed))
        else:
            self.problems.unsupported(f"{self._where}{name} is {shown(value)}; only {_choices(allowed)} is implemented")
        return allowed[0]

    def block(self, key: str) -> "KeyReader":
        """A reader of a nested object. Raises at once where there is none, since nothing below it can be read."""
        name, value = self._find(key)
        if not isinstance(value, dict):
            self._complain(name, value, "an object")
            self.problems.raise_any()
        assert isinstance(value, dict)
        inner = KeyReader(value, f"{self._where}{_plain(name)}.", self.problems)
        self._blocks.append(inner)
        return inner

    def blocks(self) -> list["KeyReader"]:
        """A reader for each entry of an object whose keys are free names and whose values are objects."""
        return [self.block(key) for key in self._config]

    def raw(self, key: str) -> object:
        """The unchecked value, None where absent: only for comparing two places that may hold the same block."""
        value = self._find(key)[1]
        return None if value is _ABSENT else value

    def ignore(self, keys: Iterable[str]) -> None:
        """Mark keys that are known not to change what the model computes."""
        self._read.update(keys)

    def ignore_beginning(self, beginnings: tuple[str, ...]) -> None:
        """The same for keys by how they begin."""
        self._read.update(key for key in self._config if key.startswith(beginnings))

    def waive(self) -> None:
        """Ignore the rest of an object that is refused as a whole."""
        self._read.update(self._config)

    def require(self, holds: bool, text: str) -> None:
        """A rule over several keys. Checked only if there is no problem so far, since stand-ins could break it."""
        if not holds and not self.problems:
            self.problems.malformed(text)

    def _unread(self) -> list[str]:
        unread = [
            self._where + _plain(key)
            for key, value in self._config.items()
            if key not in self._read and not says_nothing(value) and not key.startswith(_NOTES)
        ]
        for block in self._blocks:
            unread += block._unread()
        return unread

    def finish(self) -> None:
        """Refuse keys with an effect that were not read, here or in a nested object; then raise all problems."""
        unread = self._unread()
        if unread:
            more = f" and {len(unread) - _SHOWN_PROBLEMS} more" if len(unread) > _SHOWN_PROBLEMS else ""
            self.problems.unsupported(
                f"unknown {'keys' if len(unread) > 1 else 'key'} {', '.join(unread[:_SHOWN_PROBLEMS])}{more}, "
                "which may change what the model computes"
            )
        self.problems.raise_any()


def _choices(allowed: tuple[object, ...]) -> str:
    return " or ".join(map(shown, allowed))
