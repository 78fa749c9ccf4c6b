// Markdown to nodes. markdown-it reads the text; its tokens become elements of the few kinds below, without attributes
// from the text, except the addresses of links. HTML in a reply is text, save for a few tags without attributes, and a
// picture is a link to it: a reply runs no script and requests nothing.

import "./vendor/markdown-it/markdown-it.umd.min.js";
import { codeNode } from "./code.js";
import { make } from "./dom.js";
import { addMath, mathNode } from "./math.js";

const LONGEST = 1_000_000; // characters; a longer text is shown as it is
const KINDS = new Set(["p", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s"]);
const PLAIN_TAG = /^<(\/?)(br|sub|sup|kbd|u|b|i|em|strong|s|del|ins|mark|small)\s*\/?>$/i;
const MOST_OPEN = 30; // tags within each other; browsers take badly to thousands
const DEEPEST = 97; // levels of blocks; what is deeper is shown as it is written, since markdown-it drops what is below 100
const ADDRESS = /^(?:https?:\/\/|mailto:)/i;

const markdown = globalThis.markdownit({ html: true, linkify: true }).disable("html_block");
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
addMath(markdown);

function linkTo(address, ...children) {
  if (!ADDRESS.test(address ?? "") || !URL.canParse(address)) return make("span", {}, ...children);
  return make("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function opened(token) {
  if (token.type === "link_open") return linkTo(token.attrGet("href"));
  const heading = /^h([1-6])$/.exec(token.tag);
  if (heading) return make(`h${Math.min(6, Number(heading[1]) + 2)}`); // below the page's own headings
  const node = make(KINDS.has(token.tag) ? token.tag : "span");
  if (token.tag === "ol" && token.attrGet("start")) node.start = Number(token.attrGet("start"));
  const aligned = /^text-align:(left|center|right)$/.exec(token.attrGet("style") ?? "");
  if (aligned) node.className = aligned[1];
  return token.tag === "table" ? [make("div", { className: "table", tabIndex: 0 }), node] : [node];
}

function leaf(token, done) {
  switch (token.type) {
    case "softbreak":
    case "hardbreak":
      return make("br");
    case "hr":
      return make("hr");
    case "code_inline":
      return make("code", {}, token.content);
    case "fence":
    case "code_block": {
      const language = token.info.trim().split(/\s+/)[0].toLowerCase();
      return language === "math" ? mathNode(token.content, true, `${token.markup}${token.info}\n${token.content}${token.markup}`) : codeNode(token.content.replace(/\n$/, ""), language, done);
    }
    case "math":
      return mathNode(token.content, token.meta.display, token.meta.source);
    case "image":
      return linkTo(token.attrGet("src"), `Picture: ${token.content || "without a name"}`);
    default:
      return document.createTextNode(token.content);
  }
}

// A tag without attributes, such as <br>: `open` is a stack of { node, tag }, and tag is "" for an element of Markdown.
function takeTag(text, open) {
  const [, closes, name] = PLAIN_TAG.exec(text) ?? [], tag = name?.toLowerCase();
  if (tag === "br") open.at(-1).node.append(make("br"));
  else if (tag && !closes && open.length < MOST_OPEN) open.push({ node: open.at(-1).node.appendChild(make(tag)), tag });
  else if (tag && closes && open.at(-1).tag === tag) open.pop();
  else open.at(-1).node.append(text);
}

function takeBox(place, token) {
  const [mark, state] = /^\[([ xX])\] /.exec(token.children[0]?.content ?? "") ?? [];
  if (!mark || place.firstChild || !place.closest("li")) return;
  token.children[0].content = token.children[0].content.slice(mark.length);
  const done = state !== " ";
  place.append(make("input", { type: "checkbox", disabled: true, checked: done, ariaLabel: done ? "done" : "to do" }), " ");
}

function build(tokens, place, done) {
  const open = [{ node: place, tag: "" }];
  for (const token of tokens) {
    const top = open.at(-1).node;
    if (token.type === "inline") {
      takeBox(top, token);
      build(token.children, top, done);
    } else if (token.type === "html_inline") takeTag(token.content, open);
    else if (token.nesting === 0) top.append(leaf(token, done));
    else if (token.hidden) continue; // the paragraphs of a tight list
    else if (token.nesting === 1) {
      const nodes = [opened(token)].flat();
      top.append(nodes[0]);
      if (nodes[1]) nodes[0].append(nodes[1]);
      open.push({ node: nodes.at(-1), tag: "" });
    } else {
      while (open.at(-1).tag) open.pop(); // tags that were not closed
      if (open.length > 1) open.pop();
    }
  }
}

// The tokens of each outermost block.
function blocksOf(tokens) {
  const blocks = [];
  let begin = 0, depth = 0;
  tokens.forEach((token, at) => {
    depth += token.nesting;
    if (depth === 0) begin = blocks.push(tokens.slice(begin, at + 1)) && at + 1;
  });
  return blocks;
}

// Renders `text` into `place`; `done` is false while it still grows. Blocks that have not changed keep their nodes, and
// so focus and selection.
export function show(place, text, done = true) {
  if (text.length > LONGEST) return place.replaceChildren(make("p", { className: "raw" }, text));
  const env = {}, lines = text.split("\n");
  const blocks = blocksOf(markdown.parse(text, env)), references = Object.keys(env.references ?? {}).length;
  blocks.forEach((block, at) => {
    const whole = done || at < blocks.length - 1, [from, to] = block[0].map;
    const source = `${whole} ${references} ${lines.slice(from, to).join("\n")}`;
    const old = place.children[at];
    if (old?.source === source) return;
    const made = document.createElement("div");
    if (block.some(({ level }) => level > DEEPEST)) made.append(make("p", { className: "raw" }, lines.slice(from, to).join("\n")));
    else build(block, made, whole);
    const node = made.children.length === 1 ? made.firstElementChild : made;
    node.source = source;
    old ? old.replaceWith(node) : place.append(node);
  });
  while (place.children.length > blocks.length) place.lastElementChild.remove();
}
