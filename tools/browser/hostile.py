"""Replies that try to run script or to reach another host, from a grammar: vectors of XSS within the forms of Markdown.

A vector's script would call `window.breach()`; its addresses name hosts below `evil.invalid`, which resolve nowhere.
"""

import random

HOST = "evil.invalid"
_CALL = ("breach()", "window.breach()", "top['breach']()", "&#98;reach()", "\\u0062reach()", "(breach)``")
_TAGS = ("script", "img", "svg", "math", "iframe", "object", "embed", "style", "link", "base", "meta", "video", "audio",
         "source", "form", "input", "button", "details", "marquee", "body", "template", "noscript", "textarea", "title",
         "a", "b", "br", "sub", "kbd", "foreignObject", "animate", "set", "use", "mglyph", "annotation-xml", "xmp",
         "plaintext", "select", "dialog", "portal", "frameset", "isindex", "image", "table", "td", "x-y")  # fmt: skip
_EVENTS = ("onerror", "onload", "onclick", "onfocus", "onmouseover", "ontoggle", "onbegin", "onanimationstart",
           "onpointerrawupdate", "onbeforetoggle", "ONERROR", "on\u017ferror",
           "oncontentvisibilityautostatechange")  # fmt: skip
_SCHEMES = ("javascript:", "JaVaScRiPt:", "java\tscript:", "java&#10;script:", " javascript:", "\x01javascript:",
            "javascript&colon;", "vbscript:", "data:text/html,", "data:text/html;base64,", "data:image/svg+xml,",
            "blob:", "filesystem:", "view-source:", "//", "https://", "http://", "\\\\", "/\\", "ftp://", "ws://",
            "file:///", "about:", "javascript%3A", "\u200bjavascript:", "mailto:")  # fmt: skip
_TEX = ("href", "url", "includegraphics", "htmlData", "htmlStyle", "htmlClass", "htmlId", "def\\x", "newcommand{\\x}",
        "fcolorbox{red}{blue}", "color{}", "text", "unicode", "char", "verb|", "rule{9em}", "kern{9em}", "require",
        "operatorname", "tag", "begin{array}", "phantom", "raisebox{9em}", "style", "cssId", "class",
        "xrightarrow")  # fmt: skip
_LANGUAGES = ("html", "svg", "js", "python", "math", "xml", "mermaid", "latex", "css", "", '"onerror=breach()')
_NOISE = ("\x00", "\u202e", "\ufeff", "\u2028", "\r", "\v", "\ud7ff", "\U0001f468\u200d\U0001f469", "&lt;",
          "&#x3c;", "\\", "\\<", "`", "``", "```", "~~~", "$", "$$", "\\(", "\\[",
          "]]>", "-->", "<!--", "<![CDATA[", "<?php", "|", "*",
          "_", "~~", "\n", "\n\n", "\n    ", "\n> ", "\n- ", "\n1. ",
          "\n|-|-|\n", "\n***\n", "[ ] ",
          "[x]: ", "  \n")  # fmt: skip


class Replies:
    """Hostile replies of one seed, without end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _call(self) -> str:
        return self._random.choice(_CALL)

    def address(self) -> str:
        """An address that is script, or that leads to another host."""
        rest = self._random.choice(
            (self._call(), f"{HOST}/{self._random.randrange(1000)}", f"<script>{self._call()}</script>")
        )
        return self._random.choice(_SCHEMES) + rest

    def tag(self) -> str:
        """A tag with up to three attributes, which may lack its end."""
        name = self._random.choice(_TAGS)
        names = (*_EVENTS, "src", "href", "srcset", "srcdoc", "style", "action", "formaction", "xlink:href", "data",
                 "background", "poster", "id", "name", "class", "is", "ping", "autofocus", "tabindex")  # fmt: skip
        parts = []
        for _ in range(self._random.randrange(4)):
            attribute, quote = self._random.choice(names), self._random.choice(('"', "'", "", "`"))
            value = self._random.choice(
                (self._call(), self.address(), f"background:url(//{HOST}/s)", "log", "conversation")
            )
            parts.append(f"{self._random.choice((' ', '/', chr(9), chr(10)))}{attribute}={quote}{value}{quote}")
        inner = self.piece(1) if self._random.random() < 0.5 else self._call()
        end = self._random.choice(("", ">", "/>", f">{inner}", f">{inner}</{name}>", f">{inner}</{name} >", "<"))
        return (
            f"<{self._random.choice(('', '/', '!', '?', ' '))}{name}{''.join(parts)}{end}"
            if self._random.random() < 0.1
            else f"<{name}{''.join(parts)}{end}"
        )

    def _formula(self) -> str:
        body = f"\\{self._random.choice(_TEX)}{{{self.address()}}}{{{self.piece(1)}}}"
        opening, closing = self._random.choice(
            (("$", "$"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$$\n", "\n$$"))
        )
        return f"{opening}{body}{closing}"

    def _markdown(self, depth: int) -> str:
        inner, address = self.piece(depth + 1), self.address()
        title = self._random.choice(("", f' "{self._call()}"', ' "\\"onmouseover=breach()"'))
        return self._random.choice((
            f"[{inner}]({address}{title})", f"![{inner}]({address}{title})", f"[{inner}](<{address}>{title})",
            f"<{address}>", f"[{inner}][r]\n\n[r]: {address}{title}\n", f"![{inner}][r]\n\n[r]: <{address}>\n",
            f"**{inner}**", f"_{inner}_", f"~~{inner}~~", f"`{inner}`", f"\n# {inner}\n", f"\n> {inner}\n",
            f"\n- {inner}\n- {address}\n", f"\n1. {inner}\n",
            f"\n| {inner} | {address} |\n|:-:|--:|\n| {inner} | <br>{address} |\n", f"- [x] {inner}",
            f"\n```{self._random.choice(_LANGUAGES)}\n{inner}\n{address}\n```\n", f"\n~~~ {address}\n{inner}\n",
            f"[![{inner}]({address})]({self.address()})", f"{address} {inner}", f"[^1]\n\n[^1]: {inner}",
            f"\n    {inner}\n",
        ))  # fmt: skip

    def piece(self, depth: int = 0) -> str:
        """Markdown, a tag, a formula, an address or noise, nested up to four deep."""
        kind = self._random.random()
        if depth < 4 and kind < 0.45:
            return self._markdown(depth)
        if depth < 3 and kind < 0.7:
            return self.tag()
        if depth < 3 and kind < 0.8:
            return self._formula()
        return self.address() if kind < 0.9 else self._random.choice(_NOISE)

    def cut(self, text: str) -> int:
        """Where the reply is cut while it streams."""
        return self._random.randint(0, len(text))

    def reply(self) -> str:
        """One reply of one to six pieces, with characters changed here and there."""
        text = self._random.choice(("", " ", "\n", "\n\n")).join(
            self.piece() for _ in range(self._random.randint(1, 6))
        )
        for _ in range(self._random.choice((0, 0, 0, 1, 3))):
            at = self._random.randrange(len(text) + 1)
            text = text[:at] + self._random.choice(_NOISE) + text[at + self._random.randrange(3) :]
        return text
