"""Checks untrusted JSON schemas for size and depth, and rewrites them for llguidance.

Keywords without effect are removed, and some that the library lacks are expressed by others: references by `$id` and
`$anchor` become JSON pointers, `propertyNames` becomes properties or a pattern, and upper bounds beyond the length of
any reply are removed. Nothing is fetched. Refused, as TextError: what is too large or too deep, and values that JSON
can't express. The library itself refuses other keywords that it does not support, by name.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from earthshine.errors import TextError
from earthshine.untrusted import require_depth, shown

MAX_SCHEMA_CHARS = 128 << 10
_MAX_LITERAL_CHARS = 4096  # a longer constant costs milliseconds a token
_MAX_URI_CHARS = 1024
_MAX_COUNT = 1 << 31  # no reply is so long; the library counts characters in 32 bits
_MAX_MULTIPLE = 10_000  # a million takes llguidance 2.4 s and 282 MB
_ANNOTATIONS = frozenset(("description", "title", "$comment", "default", "examples", "$id", "$schema"))
_DRAFT = re.compile(r"https?://json-schema\.org/draft(-0[3-7]|/20\d\d-\d\d)/schema#?")  # the library knows these
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:(//[^/]*)?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~$")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
FORMATS = frozenset(  # those that llguidance has a grammar for
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown")
)
# Keywords whose values are schemas: one, a list, or an object of them.
_ONE = frozenset(
    ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
     "unevaluatedItems", "unevaluatedProperties")
)  # fmt: skip
_LISTED = frozenset(("allOf", "anyOf", "items", "oneOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))


_Place = tuple["_Place", str] | tuple[()]  # a JSON pointer: (the parent's, last part), URI-encoded


class _Resource(NamedTuple):
    """The root, or a schema with an `$id`; the fragments of references within it start from it."""

    place: _Place
    uri: str


_ROOT = _Resource((), "")


def schema_text(what: str, schema: Any, annotated: bool = False) -> str:
    """The checked and rewritten schema as JSON; `what` names it in messages. With `annotated`, `uniqueItems` and
    formats that are not supported are removed."""
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise TextError(f"{what} must be an object.")
    require_depth(schema, what, TextError)
    _require_small_values(what, schema)
    kept = {key: value for key, value in schema.items() if key != "x-guidance"}  # the library's own options
    own = json.loads(_json(what, kept))
    _resolve(what, own)
    schemas = [inner for _, _, inner in _schemas(own, (), _ROOT)]
    pinned = any("additionalProperties" in str(inner.get("$ref")) for inner in schemas)
    for inner in schemas:
        for bound in ("minItems", "minLength", "minProperties"):
            least = inner.get(bound)
            if isinstance(least, int | float) and least >= _MAX_COUNT:
                raise TextError(f"{what} has a {bound} that is too large; no reply can be so long.")
    for inner in reversed(schemas):  # inner ones first, since the size of an outer one is checked
        _rewrite(inner, annotated, pinned)
    return _json(what, own)


def _json(what: str, schema: dict[str, Any]) -> str:
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:  # numbers of too many digits, nan, halves of surrogate pairs
        raise TextError(f"{what} holds a value that JSON has no form for.") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise TextError(f"{what} has over {MAX_SCHEMA_CHARS} characters; describe it in fewer.")
    return text


def _nodes(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every value within; items of a list have the list's key."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _nodes(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner, key)


def _require_small_values(what: str, schema: dict[str, Any]) -> None:
    multiples = []
    for key, value in _nodes(schema):
        if isinstance(value, str) and len(value) > _MAX_LITERAL_CHARS and key not in _ANNOTATIONS:
            raise TextError(f"{what} holds a text of over {_MAX_LITERAL_CHARS} characters under {shown(key)}.")
        if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
            raise TextError(f"{what} has a key that is not a string.")
        if isinstance(value, dict) and any(len(name) > _MAX_LITERAL_CHARS for name in value):
            raise TextError(f"{what} holds a name of over {_MAX_LITERAL_CHARS} characters.")
        if key == "multipleOf" and isinstance(value, (int, float)) and not isinstance(value, bool):
            multiples.append(value)
    if _multiple(multiples) > _MAX_MULTIPLE:
        raise TextError(
            f"{what}: each multipleOf must be above 0, and their least common multiple at most {_MAX_MULTIPLE} units "
            f"of the last decimal."
        )


def _multiple(values: list[int | float]) -> int:
    """The least common multiple of the values, scaled to integers: the size of the library's automaton."""
    if not all(0 < value < 10**18 for value in values):
        return _MAX_MULTIPLE + 1
    exact = [Decimal(repr(value)) for value in values]
    shift = max((-int(value.as_tuple().exponent) for value in exact), default=0)
    return _MAX_MULTIPLE + 1 if shift > 18 else math.lcm(*(int(value.scaleb(max(shift, 0))) for value in exact))


def _schemas(schema: Any, place: _Place, resource: _Resource) -> Iterator[tuple[_Place, _Resource, dict[str, Any]]]:
    """This schema and every schema within it: (place, the resource that it belongs to, schema)."""
    if not isinstance(schema, dict):
        return
    name = schema.get("$id")
    if isinstance(name, str) and name and not name.startswith("#"):
        resource = _Resource(place, _joined(resource.uri, name))
    yield place, resource, schema
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            for inner, held in value.items():
                part = _escaped(inner.replace("~", "~0").replace("/", "~1"))
                yield from _schemas(held, ((place, key), part), resource)
        elif key in _LISTED and isinstance(value, list):
            for number, held in enumerate(value):
                yield from _schemas(held, ((place, key), str(number)), resource)
        elif key in _ONE:
            yield from _schemas(value, (place, key), resource)


def _joined(base: str, uri: str) -> str:
    """The URI that `uri` is beside `base`, without its fragment; one that is none is a name like any other."""
    uri = uri.partition("#")[0][:_MAX_URI_CHARS]
    if not uri or _SCHEME.match(uri):
        return uri or base
    start = _SCHEME.match(base)
    root = start.end() if start else 0
    path = root if uri.startswith("/") else max(root, base.rfind("/") + 1)
    return (base[:path] + uri)[:_MAX_URI_CHARS]


def _escaped(text: str) -> str:
    """As a URI's fragment spells it."""
    return "".join(
        chr(byte) if chr(byte) in _UNRESERVED else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass")
    )


def _unescaped(text: str) -> str:
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "replace")


def _pointer(place: _Place) -> str:
    parts: list[str] = []
    while place:
        place, part = place
        parts.append(f"/{part}")
    return "".join(reversed(parts))


def _resolve(what: str, root: dict[str, Any]) -> None:
    """Replaces references by URI or anchor by pointers from the root, and removes `$id` and `$anchor`."""
    found = list(_schemas(root, (), _ROOT))
    resources = {resource.uri: resource for _, resource, _ in reversed(found) if resource.uri}
    anchors: dict[tuple[_Place, str], _Place] = {}
    for place, resource, schema in found:
        for name in (schema.get("$anchor"), str(schema.get("$id", "")).removeprefix("#")):
            if isinstance(name, str) and name:
                anchors.setdefault((resource.place, name), place)
    n_chars = 0
    for _, resource, schema in found:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schema["$ref"] = _target(root, reference, resource, resources, anchors)
            n_chars += len(schema["$ref"])
            if n_chars > MAX_SCHEMA_CHARS:
                raise TextError(f"{what} has references that are too long; give its definitions shorter names.")
    for _, _, schema in found:
        schema.pop("$id", None)
        schema.pop("$anchor", None)
        if not (isinstance(schema.get("$schema"), str) and _DRAFT.fullmatch(schema["$schema"])):
            schema.pop("$schema", None)


def _target(
    root: dict[str, Any],
    reference: str,
    resource: _Resource,
    resources: dict[str, _Resource],
    anchors: dict[tuple[_Place, str], _Place],
) -> str:
    """The reference as a pointer from the root; unchanged if its target is not in this schema."""
    uri, _, fragment = reference.partition("#")
    if uri:
        named = resources.get(_joined(resource.uri, uri))
        if named is None:
            return reference
        resource = named
    if fragment and not fragment.startswith("/"):
        anchor = anchors.get((resource.place, fragment))
        return reference if anchor is None else f"#{_pointer(anchor)}"
    inner = _pointer(resource.place) + fragment
    # In many schemas a pointer below an inner `$id` starts from the root of the document.
    return f"#{inner}" if not fragment or _holds(root, inner) else f"#{fragment}"


def _holds(root: Any, pointer: str) -> bool:
    """Whether there is something at this JSON pointer."""
    for part in _unescaped(pointer).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(root):
            root = root[int(name)]
        elif isinstance(root, dict) and name in root:
            root = root[name]
        else:
            return False
    return True


def _rewrite(schema: dict[str, Any], annotated: bool, pinned: bool) -> None:
    """Rewrites one schema in place. `pinned`: a reference points into additionalProperties, so they may not change."""
    if "propertyNames" in schema:
        _name_properties(schema, pinned)
    if schema.get("uniqueItems") is False or (annotated and isinstance(schema.get("uniqueItems"), bool)):
        del schema["uniqueItems"]
    for bound in ("maxItems", "maxLength", "maxProperties"):
        most = schema.get(bound)
        if isinstance(most, int | float) and most >= _MAX_COUNT:
            del schema[bound]
    form = schema.get("format")
    if annotated and isinstance(form, str) and form not in FORMATS:
        del schema["format"]


def _name_properties(schema: dict[str, Any], pinned: bool) -> None:
    """Replaces `propertyNames` by keywords that the library supports, if there are any."""
    names = schema["propertyNames"]
    if not isinstance(names, (dict, bool)) or names is False:
        return
    rules = {} if names is True else {key: value for key, value in names.items() if key not in _ANNOTATIONS}
    kinds = rules.pop("type", "string")
    if kinds != "string" and not (isinstance(kinds, list) and "string" in kinds):
        return
    others = schema.get("additionalProperties", True)
    if not rules:
        del schema["propertyNames"]
    elif pinned:
        return
    elif set(rules) == {"enum"} and isinstance(rules["enum"], list) and not schema.get("patternProperties"):
        own = schema.get("properties", {})
        listed = [name for name in rules["enum"] if isinstance(name, str)]
        if isinstance(own, dict) and len(listed) * len(json.dumps(others)) <= MAX_SCHEMA_CHARS:
            del schema["propertyNames"]
            ordered = dict.fromkeys([*(name for name in own if name in listed), *listed])  # the order of output
            schema["properties"] = {name: own.get(name, others) for name in ordered}
            schema["additionalProperties"] = False
    elif not schema.get("properties") and not schema.get("patternProperties"):
        pattern = _name_pattern(rules)
        if pattern is not None:
            del schema["propertyNames"]
            schema["patternProperties"], schema["additionalProperties"] = {pattern: others}, False


def _name_pattern(rules: dict[str, Any]) -> str | None:
    if set(rules) == {"pattern"} and isinstance(rules["pattern"], str):
        return str(rules["pattern"])
    least, most = rules.get("minLength", 0), rules.get("maxLength", "")
    if set(rules) <= {"minLength", "maxLength"} and all(type(n) is int and 0 <= n < 1 << 16 for n in rules.values()):
        return f"^(?s:.{{{least},{most}}})$"
    return None
