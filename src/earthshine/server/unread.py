"""Placeholders for content that the model can't read, such as pictures.

Clients send the whole conversation each time, so refusing a picture in it would end the conversation. Nothing is
fetched or decoded; a placeholder names what was left out. In the newest user message the caller may refuse instead.
"""

import re

from earthshine.untrusted import shown

_MOST_KIND, _MOST_TITLE = 60, 120
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


def placeholder(kind: str, title: object = None) -> str:
    """The text in place of a part, block or item of this kind. `title`: a file's name, for example."""
    named = f" {shown(title[:_MOST_TITLE])}" if isinstance(title, str) and title.strip() else ""
    return f"[{_ODD.sub('_', kind)[:_MOST_KIND]}{named}: left out, since this model reads text only]"


def refusal(kind: str) -> str:
    """The error message about a part of the newest user message."""
    return (
        f"This model reads text only, not {shown(kind)}, and nothing is fetched from an address. Leave such parts "
        "out, or send their content as text."
    )
