"""What an answer must look like: chat's response_format and the responses' text.format.

Invariant: one form governs an answer. Refused: a json_schema without its schema, and such a form beside one of
vLLM's. Whether a schema itself is sound is seen where it is compiled.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from earthshine.server.api import Refused
from earthshine.server.openai.fields import SamplingFields, format_of
from earthshine.server.turn import Format


class NamedSchema(BaseModel):
    """A JSON schema and what clients call it. Every answer keeps to it, with `strict` or without."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Chat's form: the schema lies one level deeper."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class TextFormat(NamedSchema):
    """The responses' form."""

    type: Literal["text", "json_object", "json_schema"]


def one_format(body: SamplingFields, asked: ResponseFormat | TextFormat | None, param: str) -> Format | None:
    """The form that the answer must have, or None. Raises Refused."""
    otherwise = format_of(body)
    if asked is None or asked.type == "text":
        return otherwise
    if otherwise is not None:
        raise Refused(f"{param} and a guided_* or structured_outputs field both say what the answer must be; give one "
                      "of them.", param=param)  # fmt: skip
    if asked.type == "json_object":
        return Format("json_object")
    named = asked if isinstance(asked, TextFormat) else asked.json_schema
    if named is None or named.schema_ is None:
        raise Refused("A json_schema format needs a schema, which is a JSON object.", param=param)
    return Format("json_schema", named.schema_)
