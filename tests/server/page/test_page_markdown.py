"""What the page makes of a reply's Markdown, and that no reply gets more than that."""

import json

import pytest
from browser.fuzz import fuzz

from .conftest import DONE, chunk

PLACE = "document.querySelector('.reply:last-child .text')"
RICH = r"""# One

A *b* ~~c~~ with $E=mc^2$ for \$5 and $6, \(a_b\)
next line

$$
\frac{1}{2}
$$

| a | b |
|:-:|--:|
| 1 | x<br>y H<sub>2</sub>O |

- [ ] to do
- [x] done

3. three
   > quoted

[ours](/v1/models) [site](https://example.com/a) ![moon](https://example.com/moon.png) [bad](javascript:alert(1))

```js
const one = 1; // <b>
```

    indented
"""
TRAP = b"""export function show(place, text) {
  const image = Object.assign(document.createElement("img"), { src: "http://evil.invalid/" });
  place.replaceChildren(image);
}"""


def say(page, server, text, **fields):
    server.steps = [chunk(content=text, **fields), chunk("stop")]
    page.ask("Say it")
    page.until(DONE)


class TestMarkdown:
    def test_each_form_becomes_its_element(self, page, server):
        say(page, server, RICH)
        page.until(f"{PLACE}.querySelectorAll('.katex').length === 3 && {PLACE}.querySelector('.hl-keyword')")
        texts = {
            "h3": "One", "em": "b", "s": "c", "td.center": "1", "td.right sub": "2", "blockquote": "quoted",
            ".hl-keyword": "const", "pre code": "const one = 1; // <b>", "figure + figure pre": "indented",
        }  # fmt: skip
        for selector, text in texts.items():
            assert page.run(f"{PLACE}.querySelector('{selector}').textContent.trim()") == text, selector
        assert page.run(f"{PLACE}.querySelector('ol').start") == 3
        boxes = f"[...{PLACE}.querySelectorAll('input')].map((box) => [box.checked, box.ariaLabel, box.disabled])"
        assert page.run(boxes) == [[False, "to do", True], [True, "done", True]]
        assert "for $5 and $6" in page.run(f"{PLACE}.textContent")
        links = page.run(f"[...{PLACE}.querySelectorAll('a')].map((a) => [a.textContent, a.href, a.rel])")
        rel = "noopener noreferrer nofollow"
        assert links == [
            ["site", "https://example.com/a", rel],
            ["Picture: moon", "https://example.com/moon.png", rel],
        ]
        assert page.run(f"{PLACE}.querySelectorAll('img').length") == 0
        assert page.hosts() == {f"127.0.0.1:{server.server_port}"}
        assert page.complaints() == []

    def test_a_formula_has_its_mathematics_for_screen_readers(self, page, server):
        say(page, server, r"$$x^2$$")
        page.until(f"{PLACE}.querySelector('.katex math')")
        assert "MathMLMath" in [role for role, _ in page.tree()]

    @pytest.mark.parametrize(
        "formula",
        [r"$\undefined{x}$", r"$\frac{$", r"$$\frac{$$", r"\(\frac{\)", r"\[\frac{\]", "$" + "{" * 900 + "$",
         "$" * 5000, "$$\n\\frac{\n$$", "```math\n\\frac{\n```"],
    )  # fmt: skip
    def test_a_formula_that_is_none_stays_as_it_is_written(self, page, server, formula):
        say(page, server, "$x$\n\n" + formula)
        page.until(f"{PLACE}.querySelector('.katex')")
        page.until(f"{PLACE}.children[1].textContent === {json.dumps(formula)}")
        assert not page.run("document.querySelector('.wrong:not([hidden])')")
        assert page.complaints() == []  # also none of the policy about styles

    @pytest.mark.parametrize("mark", ["> ", "- "])
    @pytest.mark.parametrize("depth", [45, 60, 98, 99, 100, 101, 500])
    def test_a_deeply_nested_text_is_shown(self, page, mark, depth):
        shown = page.run(f"""(async () => {{
          const {{ show }} = await import("/markdown.js"), place = document.createElement("div");
          show(place, "before\\n\\n" + {json.dumps(mark)}.repeat({depth}) + "deep *text*\\n\\nafter");
          return place.textContent;
        }})()""")
        assert shown.startswith("before")
        assert shown.endswith("after")
        assert "deep" in shown

    def test_a_block_that_has_not_changed_keeps_its_node(self, page):
        kept = page.run("""(async () => {
          const { show } = await import("/markdown.js"), place = document.createElement("div");
          show(place, "one\\n\\ntwo", false);
          const first = place.firstChild;
          show(place, "one\\n\\ntwo and\\n\\nthree", true);
          return [place.firstChild === first, place.children.length, place.children[1].textContent];
        })()""")
        assert kept == [True, 3, "two and"]

    def test_a_very_long_reply_is_shown_as_it_is(self, page, server):
        say(page, server, "**b** " * 200_000)
        assert page.run(f"{PLACE}.textContent.length") == 1_200_000
        assert page.run(f"{PLACE}.querySelectorAll('strong').length") == 0

    @pytest.mark.parametrize(
        "text",
        ["> " * 20_000 + "x", "[" * 50_000, "$a " * 50_000, "\\(" * 50_000, "$$\nx\n" * 20_001, "*a_" * 30_000,
         "<b>" * 30_000],
    )  # fmt: skip
    def test_a_text_made_to_take_long_is_shown(self, page, server, text):
        """A quadratic rule would take minutes for these; the browser's own limit would end the test."""
        say(page, server, text)
        assert page.run(f"{PLACE}.children.length") > 0
        assert not page.run("document.querySelector('.wrong:not([hidden])')")


class TestHostileReplies:
    def test_none_runs_script_or_asks_another_host(self, browser, server):
        assert fuzz(browser, f"http://127.0.0.1:{server.server_port}/", 1000, seed=7) == []

    def test_one_that_did_would_be_found(self, browser, server):
        server.replaced["/markdown.js"] = TRAP
        found = fuzz(browser, f"http://127.0.0.1:{server.server_port}/", 2, seed=7)
        assert [line.split(":")[0] for line in found[:4]] == ["an element img"] * 4
        assert any("the policy stopped" in line for line in found)

    def test_the_policy_alone_stops_script_and_requests(self, page, server):
        """What a hole in the Markdown path would meet."""
        refused = page.run("""(async () => {
          const found = [];
          document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
          const image = Object.assign(new Image(), { src: "http://evil.invalid/a.png" });
          try { image.innerHTML = "<b>"; } catch (error) { found.push(error.name); }
          document.body.append(image);
          try { image.setAttribute("onclick", "window.ran = true"); } catch (error) { found.push(error.name); }
          image.click();
          const style = document.createElement("div");
          style.setAttribute("style", "color: red");
          await fetch("http://evil.invalid/b").catch(() => found.push("fetch"));
          await new Promise((resolve) => setTimeout(resolve, 200));
          return [window.ran ?? false, [...new Set(found)].sort()];
        })()""")
        assert refused[0] is False
        assert {"img-src", "connect-src", "fetch", "require-trusted-types-for"} <= set(refused[1])
        assert {"TypeError", "style-src-attr"} <= set(refused[1])
        asked = {host for host in page.hosts() if host != f"127.0.0.1:{server.server_port}"}
        assert not asked or json.dumps(page.events).count('"blockedReason": "csp"') >= len(asked)
