"""What the model can't read, as a short text in its place: clients send the whole conversation each time, so a picture
that were refused in it would end the conversation for good.

Invariant: nothing is fetched or decoded, and a placeholder names what was left out. What the newest user message holds
may be refused instead, which is the caller's to decide.
"""

import re

from earthshine.untrusted import shown

_MOST_KIND, _MOST_TITLE = 60, 120
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


def placeholder(kind: str, title: object = None) -> str:
    """The text for a part, block or item of this kind; `title` may be a file's name."""
    named = f" {shown(title[:_MOST_TITLE])}" if isinstance(title, str) and title.strip() else ""
    return f"[{_ODD.sub('_', kind)[:_MOST_KIND]}{named}: left out, since this model reads text only]"


def refusal(kind: str) -> str:
    """The message about a part that the newest user message holds."""
    return (
        f"This model reads text only, and {shown(kind)} is none; nothing is fetched from an address. Leave such parts "
        "out, or send their content as text."
    )
