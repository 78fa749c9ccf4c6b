"""Shows hostile replies on the page in Chromium, and looks for what none of them may do.

A reply must run no script, request nothing, and leave no element or attribute in the page that could: each reply is
shown at a prefix of itself, as it streams, and whole, in the place where replies are shown.
"""

import json
from pathlib import Path

from browser.chromium import Browser
from browser.hostile import Replies

_BATCH = 200
_READY = Path(__file__).with_suffix(".js")  # defines `shows`


def fuzz(browser: Browser, url: str, count: int, seed: int) -> list[str]:
    """What `count` replies did that they must not, a line each; the browser ends up on the page at `url`."""
    browser.open(url)
    browser.run(_READY.read_text(encoding="utf-8"))
    replies, wrong = Replies(seed), []
    for begun in range(0, count, _BATCH):
        texts = [replies.reply() for _ in range(min(_BATCH, count - begun))]
        batch = [(text, replies.cut(text)) for text in texts]
        wrong += [f"{what}: {text!r}" for what, text in browser.run(f"shows({json.dumps(batch)})")]
        wrong += [f"a request to {host}" for host in browser.hosts() if not host.startswith("127.0.0.1:")]
        del browser.events[:]
    return wrong
