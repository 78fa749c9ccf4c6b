// Blocks of code: their language, a copy button, and colours by highlight.js, which is loaded when needed.
// Its tree of tokens becomes nodes here; its HTML is not used.

import { copyButton, make } from "./dom.js";

const LONGEST = 100_000; // characters that are coloured

let highlighter = null, loading = null;

const load = () =>
  import("./vendor/highlight/highlight.min.js").then((module) => (highlighter = module.default));

function colour(place, text, language) {
  if (!highlighter.getLanguage(language)) return;
  const open = [document.createDocumentFragment()];
  try {
    highlighter.highlight(text, { language, ignoreIllegals: true })._emitter.walk({
      addText: (part) => open.at(-1).append(part),
      openNode: ({ scope }) => scope && open.push(make("span", { className: `hl-${scope.split(".")[0]}` })),
      closeNode: ({ scope }) => scope && open.at(-2).append(open.pop()),
    });
  } catch {
    return; // a language whose rules fail leaves the text as it is
  }
  place.replaceChildren(open[0]);
}

// `done` is false while the block still grows; it gets its colours when it is whole.
export function codeNode(text, language, done) {
  const code = make("code", {}, text);
  const caption = make("figcaption", {}, make("span", {}, language || "text"), copyButton(() => text));
  if (done && language && text.length <= LONGEST) {
    if (highlighter) colour(code, text, language);
    else (loading ??= load()).then(() => colour(code, text, language), () => {});
  }
  return make("figure", {}, caption, make("pre", { tabIndex: 0 }, code));
}
