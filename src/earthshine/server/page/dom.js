// Nodes, small buttons, the clipboard, downloads, and the one dialog that asks before something is lost.
// Text from a model or a server enters the document as text nodes only; nothing is ever parsed as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const quiet = (text, onclick) => make("button", { type: "button", className: "quiet", textContent: text, onclick });

// Shows `text` in the node, or hides it where there is none.
export function note(node, text) {
  node.hidden = !text;
  if (node.textContent !== text) node.textContent = text;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const carrier = make("textarea", { value: text, className: "unseen" }); // without HTTPS there is no navigator.clipboard
  document.body.append(carrier);
  carrier.select();
  document.execCommand("copy");
  carrier.remove();
}

export function copyButton(text) {
  const button = quiet("Copy", async () => {
    await copy(text()).then(() => (button.textContent = "Copied"), () => (button.textContent = "Not allowed"));
    button.focus();
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

export function download(name, type, text) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Asks `text` in a dialog; the answer is true or, where a `value` to change is given, a text; null after Cancel or Esc.
export function ask(text, action, value) {
  const [dialog, field] = [$("dialog"), $("answer")];
  $("asking").textContent = text;
  $("yes").textContent = action;
  Object.assign(field, { hidden: value === undefined, value: value ?? "" });
  return new Promise((resolve) => {
    const end = (answer) => {
      dialog.close();
      resolve(answer);
    };
    const agree = () => end(value === undefined ? true : field.value);
    $("yes").onclick = agree;
    $("no").onclick = () => end(null);
    field.onkeydown = (event) => event.key === "Enter" && (event.preventDefault(), agree());
    dialog.oncancel = () => resolve(null); // by Esc; "close" comes later, when another question may be open
    dialog.showModal();
    (value === undefined ? $("no") : field).focus();
  });
}

export const number = (count) => count.toLocaleString("en");
export const counted = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
