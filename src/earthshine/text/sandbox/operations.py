"""The filters, tests and methods that a chat template may use, each bounded by the rendering's meter.

Only what is listed here exists for a template. Lists come out whole, never as lazy iterators, so that no value hides
work or a chain of references. Each function's first argument is the meter; a wrong argument raises and fails the
rendering.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from jinja2 import filters as jinja
from jinja2.runtime import Undefined

from earthshine.text.sandbox.meter import MAX_ITEMS, Meter, Overspent

_MAX_SHORT = 256  # characters of an argument whose length multiplies work: what to strip, an indentation
_PERCENT = re.compile(r"%(.?)", re.DOTALL)
_BRACES = re.compile(r"\{\{|\}\}|\{([0-9]{0,3}|[A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


def as_list(meter: Meter, value: Any) -> list[Any]:
    """A list of what the value yields, at most MAX_ITEMS."""
    if isinstance(value, (str, list, tuple, dict)):
        meter.items(len(value))
        return list(value)
    if isinstance(value, Undefined):
        return []
    items = list(islice(iter(value), MAX_ITEMS + 1))
    meter.items(len(items))
    return items


def as_text(meter: Meter, value: Any) -> str:
    """What `{{ value }}` prints: texts as they are, undefined as nothing, all else as Python prints it."""
    size = meter.size(value)
    text = value if type(value) is str else str(value)
    meter.text(max(size, len(text)))
    return text


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_SHORT:
        raise Overspent(f"it passes more than {_MAX_SHORT} characters where a few are meant")
    return value


def to_json(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, as the published templates expect: no HTML escaping, other scripts as they are."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise ValueError("tojson takes an indent of 0 to 16")
    if separators is not None:
        separators = tuple(separators)
        if [isinstance(mark, str) and len(mark) <= 8 for mark in separators] != [True, True]:
            raise ValueError("tojson takes two separators of at most 8 characters")
    meter.size(value)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, check_circular=False
    )
    if indent is None:
        text = encoder.encode(value)
        meter.text(len(text))
        return text
    pieces = []
    for piece in encoder.iterencode(value):  # paid piece by piece: indentation can outweigh the value by far
        meter.charge(len(piece))
        pieces.append(piece)
    meter.text(sum(map(len, pieces)))
    return "".join(pieces)


def percent(meter: Meter, text: str, values: Any) -> str:
    """`text % values` for %s, %d and %%; widths and names are refused."""
    found = _PERCENT.findall(text)
    if any(kind not in ("s", "d", "%") for kind in found):
        raise ValueError("only %s, %d and %% are supported in text formatting")
    meter.items(len(found))
    meter.text(len(text) + meter.size(values))
    made: str = text % values
    return made


def braces(meter: Meter, text: str, *args: Any, **kwargs: Any) -> str:
    """`text.format(...)` for {}, {0} and {name}; format codes and attributes are refused."""
    pieces: list[str] = []
    at = n_auto = 0
    for match in _BRACES.finditer(text):
        meter.charge(match.start() - at)
        pieces.append(text[at : match.start()])
        at = match.end()
        if match[0] in ("{{", "}}"):
            pieces.append(match[0][0])
        elif match[1] is None:
            raise ValueError("only {}, {0} and {name} are supported in format()")
        elif match[1] == "" or match[1].isdigit():
            pieces.append(as_text(meter, args[int(match[1]) if match[1] else n_auto]))
            n_auto += match[1] == ""
        else:
            pieces.append(as_text(meter, kwargs[match[1]]))
    pieces.append(text[at:])
    meter.text(sum(map(len, pieces)))
    return "".join(pieces)


def replace(meter: Meter, value: Any, old: str, new: str, count: int | None = None) -> str:
    """`str.replace`; the result's length is paid for first."""
    text = as_text(meter, value)
    n_hits = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    meter.text(len(text) + n_hits * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def join(meter: Meter, values: Any, separator: str = "", attribute: str | None = None, context: Any = None) -> str:
    """The values as texts with a separator between them."""
    items = as_list(meter, values)
    if attribute is not None:
        items = list(jinja.sync_do_map(context, items, attribute=attribute))
    pieces = [as_text(meter, item) for item in items]
    meter.text(sum(map(len, pieces)) + len(separator) * max(0, len(pieces) - 1))
    return separator.join(pieces)


def indent(meter: Meter, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Each line but the first (unless `first`) and the blank ones (unless `blank`) moved right."""
    pad = _short(width) if isinstance(width, str) else " " * min(width, _MAX_SHORT)
    lines = split(meter, text, "\n")
    meter.text(len(text) + len(lines) * len(pad))
    moved = [pad + line if (line or blank) and (number or first) else line for number, line in enumerate(lines)]
    return "\n".join(moved)


def rounded(meter: Meter, value: float, precision: int = 0, method: str = "common") -> float:
    """Jinja's round, with a precision of at most 15 places."""
    if not isinstance(precision, int) or not 0 <= precision <= 15:
        raise ValueError("round takes a precision of 0 to 15")
    return jinja.do_round(value, precision, method)  # type: ignore[arg-type]


def _strip(name: str) -> Callable[..., str]:
    def method(meter: Meter, text: str, characters: str | None = None) -> str:
        meter.text(len(text))
        stripped: str = getattr(text, name)(_short(characters))
        return stripped

    return method


def _split(name: str) -> Callable[..., list[str]]:
    """`str.split` or `str.rsplit`, with at most MAX_ITEMS parts."""

    def method(meter: Meter, text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        limit = maxsplit if 0 <= maxsplit <= MAX_ITEMS else MAX_ITEMS
        meter.text(len(text))
        parts: list[str] = getattr(text, name)(sep, limit)
        if limit != maxsplit and len(parts) > MAX_ITEMS:
            raise Overspent(f"it makes a list of more than {MAX_ITEMS} items")
        meter.items(len(parts))
        return parts

    return method


split, _rsplit = _split("split"), _split("rsplit")


def _splitlines(meter: Meter, text: str, keepends: bool = False) -> list[str]:
    meter.text(len(text))
    if len(text) >= MAX_ITEMS:
        meter.items(sum(text.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    return text.splitlines(keepends)


def _linear(name: str) -> Callable[..., Any]:
    """A method of text whose cost and result grow only with the text."""

    def method(meter: Meter, text: str, *args: Any) -> Any:
        if any(not isinstance(argument, (str, int, type(None))) for argument in args):
            raise TypeError(f"{name}() takes texts and numbers")
        meter.work(len(text))
        result = getattr(text, name)(*args)
        meter.text(len(text) if isinstance(result, (str, tuple)) else 0)
        return result

    return method


def _get(meter: Meter, mapping: dict[Any, Any], key: Any, default: Any = None) -> Any:
    meter.size(key)
    return mapping.get(key, default)


def _items(meter: Meter, mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    meter.items(len(mapping))
    return list(mapping.items())


def _index(name: str) -> Callable[..., int]:
    def method(meter: Meter, values: list[Any], value: Any) -> int:
        meter.size(values)
        meter.size(value)
        found: int = getattr(values, name)(value)
        return found

    return method


_LINEAR = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
    "istitle isupper lower partition removeprefix removesuffix rfind rindex rpartition startswith swapcase title upper"
)

METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {name: _linear(name) for name in _LINEAR.split()}
    | {name: _strip(name) for name in ("strip", "lstrip", "rstrip")}
    | {
        "format": braces,
        "join": lambda meter, text, values: join(meter, values, text),
        "replace": replace,
        "rsplit": _rsplit,
        "split": split,
        "splitlines": _splitlines,
    },
    dict: {
        "get": _get,
        "items": _items,
        "keys": as_list,
        "values": lambda meter, mapping: as_list(meter, list(mapping.values())),
    },
    list: {"count": _index("count"), "index": _index("index")},
    tuple: {"count": _index("count"), "index": _index("index")},
}


def _measured(function: Callable[..., Any], needs: str = "") -> Callable[..., Any]:
    """A filter of Jinja's own whose cost grows with the whole value: measured first, its result a list or a value."""

    def operation(context: Any, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
        items = value if isinstance(value, (dict, Undefined)) else as_list(meter, value)
        meter.size((items, list(args), kwargs))
        first = {"": (), "context": (context,), "environment": (context.environment,)}[needs]
        result = function(*first, items, *args, **kwargs)
        return as_list(meter, result) if isinstance(result, Iterable) and not isinstance(result, str) else result

    return operation


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(context: Any, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
        items = as_list(meter, value)
        meter.size(items)
        return function(context.environment, items, *args, **kwargs)

    return operation


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """map, select and reject: the filters, tests and attributes that they apply are metered themselves."""

    def operation(context: Any, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return as_list(meter, function(context, as_list(meter, value), *args, **kwargs))

    return operation


def _sum(context: Any, meter: Meter, values: Any, attribute: str | None = None, start: Any = 0) -> Any:
    items = as_list(meter, values)
    if attribute is not None:
        items = list(jinja.sync_do_map(context, items, attribute=attribute))
    for item in items:
        start = context.environment.call_binop(context, "+", start, item)
    return start


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves the context out, for operations that need the meter only."""

    def operation(context: Any, meter: Meter, *args: Any, **kwargs: Any) -> Any:
        return function(meter, *args, **kwargs)

    return operation


def _texted(name: str) -> Callable[..., Any]:
    method = METHODS[str][name]
    return _plain(lambda meter, value, *args: method(meter, as_text(meter, value), *args))


def _length(meter: Meter, value: Any) -> int:
    return len(value)


def _last(meter: Meter, value: Any) -> Any:
    return as_list(meter, value)[-1] if len(value) else Undefined(name="last")


def _first(meter: Meter, value: Any) -> Any:
    return next(iter(value), Undefined(name="first"))


def _reverse(meter: Meter, value: Any) -> Any:
    if isinstance(value, str):
        meter.text(len(value))
        return value[::-1]
    return as_list(meter, value)[::-1]


def _whole(meter: Meter, value: Any, default: Any = 0, base: int = 10) -> Any:
    return meter.number(jinja.do_int(_short(value), default, base))


# name -> operation(context, meter, value, ...)
FILTERS: dict[str, Callable[..., Any]] = {
    "abs": _plain(lambda meter, value: meter.number(abs(value))),
    "capitalize": _texted("capitalize"),
    "count": _plain(_length),
    "d": _plain(lambda meter, *args, **kwargs: jinja.do_default(*args, **kwargs)),
    "default": _plain(lambda meter, *args, **kwargs: jinja.do_default(*args, **kwargs)),
    "dictsort": _measured(jinja.do_dictsort),
    "first": _plain(_first),
    "float": _plain(lambda meter, value, default=0.0: jinja.do_float(_short(value), default)),
    "format": _plain(lambda meter, text, *values: percent(meter, text, values)),
    "indent": _plain(indent),
    "int": _plain(_whole),
    "items": _plain(lambda meter, value: [] if isinstance(value, Undefined) else _items(meter, value)),
    "join": lambda context, meter, values, d="", attribute=None: join(meter, values, d, attribute, context),
    "last": _plain(_last),
    "length": _plain(_length),
    "list": _plain(as_list),
    "lower": _texted("lower"),
    "map": _mapped(jinja.sync_do_map),
    "max": _extreme(jinja.do_max),
    "min": _extreme(jinja.do_min),
    "reject": _mapped(jinja.sync_do_reject),
    "rejectattr": _mapped(jinja.sync_do_rejectattr),
    "replace": _plain(replace),
    "reverse": _plain(_reverse),
    "round": _plain(rounded),
    "safe": _plain(as_text),
    "select": _mapped(jinja.sync_do_select),
    "selectattr": _mapped(jinja.sync_do_selectattr),
    "sort": _measured(jinja.do_sort, "environment"),
    "string": _plain(as_text),
    "sum": _sum,
    "title": _texted("title"),
    "tojson": _plain(to_json),
    "trim": _texted("strip"),
    "unique": _measured(jinja.sync_do_unique, "environment"),
    "upper": _texted("upper"),
}
