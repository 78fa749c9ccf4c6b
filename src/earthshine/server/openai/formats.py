"""Structured outputs: response_format, text.format of responses, and the fields of other servers for the same.

Invariant: an answer has at most one format. Refused: two formats, a json_schema without its schema, and formats that
are not implemented. Schemas and grammars themselves are checked where they are compiled.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from earthshine.errors import TextError
from earthshine.generation.request import Format
from earthshine.server.refusals import Refused
from earthshine.untrusted import parse_object, shown

_Choices = Annotated[list[str], Field(min_length=1, max_length=1024)]
_UNUSED = ("structural_tag", "whitespace_pattern", "disable_additional_properties")


class NamedSchema(BaseModel):
    """A JSON schema and its name. It is always enforced; without `strict`, its `uniqueItems` and unsupported formats
    are not."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Chat's form, with the schema one level deeper. With json_object, `schema` is llama.cpp's."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextFormat(NamedSchema):
    """The responses' form."""

    type: Literal["text", "json_object", "json_schema"]


class StructuredOutputs(BaseModel):
    """vLLM's form; exactly one field."""

    model_config = ConfigDict(extra="ignore", strict=True)

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: _Choices | None = None
    grammar: str | None = None
    structural_tag: Any = None
    whitespace_pattern: Any = None
    disable_additional_properties: Any = None


class FormatFields(BaseModel):
    """All fields for the format of an answer, OpenAI's first."""

    response_format: ResponseFormat | None = None
    guided_json: str | dict[str, Any] | None = None  # these four and structured_outputs are vLLM's
    guided_regex: str | None = None
    guided_choice: _Choices | None = None
    guided_grammar: str | None = None  # in Lark's notation, or llama.cpp's
    structured_outputs: StructuredOutputs | bool | None = None  # a bool is OpenRouter's and has no effect
    regex: str | None = None  # SGLang's, as is ebnf
    ebnf: str | None = None
    grammar: str | None = None  # llama.cpp's, as is json_schema
    json_schema: str | dict[str, Any] | None = None
    json_object: bool | None = None
    format: str | dict[str, Any] | None = None  # Ollama's: "json", or a schema


def format_of(fields: FormatFields, text: TextFormat | None = None) -> Format | None:
    """The format of the answer, or None. `text`: text.format of responses. Raises Refused."""
    given = {
        "response_format": _response_format(fields.response_format),
        "text.format": _response_format(text),
        "guided_json": _schema(fields.guided_json, "guided_json"),
        "guided_regex": _text("regex", fields.guided_regex),
        "guided_choice": None if fields.guided_choice is None else Format("choice", fields.guided_choice),
        "guided_grammar": _text("grammar", fields.guided_grammar),
        "regex": _text("regex", fields.regex),
        "ebnf": _text("grammar", fields.ebnf),
        "grammar": _text("grammar", fields.grammar),
        "json_schema": _schema(fields.json_schema, "json_schema"),
        "json_object": Format("json_object") if fields.json_object else None,
        "format": Format("json_object") if fields.format == "json" else _schema(fields.format, "format"),
    }
    outputs = fields.structured_outputs
    if isinstance(outputs, StructuredOutputs):
        given |= {f"structured_outputs.{name}": form for name, form in _structured(outputs).items()}
    forms = {name: form for name, form in given.items() if form is not None}
    if len(forms) > 1:
        given_twice = " and ".join(forms)
        raise Refused(f"An answer can have only one format; give one of {given_twice}.", param=next(iter(forms)))
    return next(iter(forms.values()), None)


def _structured(outputs: StructuredOutputs) -> dict[str, Format | None]:
    for name in _UNUSED:
        if getattr(outputs, name) not in (None, False, ""):
            raise Refused(
                f"{name} is not implemented; use json, regex, choice or grammar.", param=f"structured_outputs.{name}"
            )
    return {
        "json": _schema(outputs.json_, "structured_outputs.json"),
        "json_object": Format("json_object") if outputs.json_object else None,
        "regex": _text("regex", outputs.regex),
        "choice": None if outputs.choice is None else Format("choice", outputs.choice),
        "grammar": _text("grammar", outputs.grammar),
    }


def _response_format(asked: ResponseFormat | TextFormat | None) -> Format | None:
    if asked is None or asked.type == "text":
        return None
    named = asked if isinstance(asked, TextFormat) else asked.json_schema
    schema = named.schema_ if named is not None else None
    if schema is None:
        schema = asked.schema_
    if schema is None and asked.type == "json_object":
        return Format("json_object")
    if schema is None:
        param = "text.format" if isinstance(asked, TextFormat) else "response_format"
        raise Refused("A json_schema format needs a schema, which is a JSON object.", param=param)
    return Format("json_schema", schema, named is not None and bool(named.strict))


def _text(kind: Literal["regex", "grammar"], given: str | None) -> Format | None:
    return Format(kind, given) if given else None


def _schema(given: str | dict[str, Any] | None, param: str) -> Format | None:
    if given is None or given == "":
        return None
    if isinstance(given, str):
        try:
            given = parse_object(given.encode("utf-8", "replace"), f"The JSON schema in {shown(param)}", TextError)
        except TextError as error:
            raise Refused(str(error), param=param) from None
    return Format("json_schema", given)
