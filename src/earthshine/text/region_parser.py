"""The parser of a model's replies, by the form of its tool calls."""

from earthshine.text.forms import CallForm
from earthshine.text.regions import RegionParser
from earthshine.text.regions_json import JsonCallParser
from earthshine.text.regions_xml import Schemas, XmlCallParser
from earthshine.text.tokenizer import Tokenizer


def region_parser(
    tokenizer: Tokenizer,
    form: CallForm | None,
    *,
    thinking: bool,
    calls: bool = True,
    schemas: Schemas | None = None,
    skip_special: bool = True,
) -> RegionParser:
    """The parser for a model that writes tool calls in `form`. `schemas`: function -> schema of its
    arguments, for the form whose values have no types; other arguments as for RegionParser."""
    if form is CallForm.XML:
        return XmlCallParser(
            tokenizer, thinking=thinking, calls=calls, schemas=schemas or {}, skip_special=skip_special
        )
    made = JsonCallParser if form is CallForm.JSON else RegionParser
    return made(tokenizer, thinking=thinking, calls=calls, skip_special=skip_special)
