// Formulas: $...$, $$...$$, \(...\) and \[...\] as tokens of markdown-it, drawn by KaTeX, which is loaded when needed.
// A formula is shown as it is written until KaTeX is there, and if it is too long or invalid. KaTeX builds nodes
// and sets styles by script, so the page's policy needs no exception for it; `trust` is off, so no formula holds an address.

import { make } from "./dom.js";

const LONGEST = 10_000; // characters of a formula
const LONGEST_SIMPLE = 1_000; // between two single dollars: a reply of dollars must not take quadratic time
const MOST_LINES = 200; // of a block
const PAIRS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false]];

let katex = null, loading = null;

function load() {
  document.head.append(make("link", { rel: "stylesheet", href: "vendor/katex/katex.min.css" }));
  return import("./vendor/katex/katex.min.js").then(() => (katex = globalThis.katex));
}

// Removes the style attributes of MathML, such as the border of \fcolorbox, which the page's policy would refuse.
function withoutStyles(part) {
  delete part.attributes?.style;
  part.children?.forEach(withoutStyles);
}

// `source` is the formula as it is written, with its dollars.
export function mathNode(tex, display, source) {
  const node = make("span", { className: display ? "formula display" : "formula", textContent: source });
  if (tex.length > LONGEST) return node;
  const options = { displayMode: display, throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 200 };
  const draw = () => {
    try {
      const tree = katex.__renderToDomTree(tex, options);
      withoutStyles(tree);
      node.replaceChildren(tree.toNode());
    } catch {
      node.textContent = source;
      node.classList.add("raw");
    }
  };
  if (katex) draw();
  else (loading ??= load()).then(draw, () => {}); // the formula stays text where KaTeX can't be loaded
  return node;
}

// Where a formula between single dollars ends: before a dollar that follows no space and precedes no digit, as in
// pandoc, so that "$5 and $6" is none; -1 where it does not end.
function endOfSimple(text, start) {
  if (/[\s$]/.test(text[start] ?? " ")) return -1;
  for (let at = start; at < Math.min(text.length, start + LONGEST_SIMPLE); at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "$") {
      if (!/\s/.test(text[at - 1]) && !/[\d$]/.test(text[at + 1] ?? "")) return at;
    }
  }
  return -1;
}

function push(state, content, display, source) {
  Object.assign(state.push("math", "", 0), { content: content.trim(), meta: { display, source } });
}

function inlineMath(state, silent) {
  const { src, pos } = state;
  for (const [open, close, display] of PAIRS) {
    if (!src.startsWith(open, pos)) continue;
    const from = pos + open.length, length = src.slice(from, from + LONGEST).indexOf(close);
    if (length < 1) continue;
    const after = from + length + close.length;
    if (!silent) push(state, src.slice(from, from + length), display, src.slice(pos, after));
    state.pos = after;
    return true;
  }
  const end = src[pos] === "$" ? endOfSimple(src, pos + 1) : -1;
  if (end < 0) return false;
  if (!silent) push(state, src.slice(pos + 1, end), false, src.slice(pos, end + 1));
  state.pos = end + 1;
  return true;
}

function blockMath(state, start, end, silent) {
  const line = (at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]).trimEnd();
  const first = line(start), pair = PAIRS.find(([open, , display]) => display && first.startsWith(open));
  if (!pair || state.sCount[start] - state.blkIndent >= 4) return false;
  const lines = [first];
  let at = start;
  while (!(at === start ? first.slice(2) : lines.at(-1)).endsWith(pair[1])) {
    if (++at >= Math.min(end, start + MOST_LINES) || state.sCount[at] < state.blkIndent) return false;
    lines.push(line(at));
  }
  if (silent) return true;
  const source = lines.join("\n");
  push(state, source.slice(2, -2), true, source);
  Object.assign(state.tokens.at(-1), { block: true, map: [start, at + 1] });
  state.line = at + 1;
  return true;
}

export function addMath(markdown) {
  markdown.inline.ruler.before("escape", "math", inlineMath);
  markdown.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
}
