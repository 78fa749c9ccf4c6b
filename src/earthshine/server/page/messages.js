// The open conversation on the screen: an article for each message of the path, with what can be done to it.

import { textOf } from "./conversation.js";
import { $, copyButton, counted, make, note, quiet } from "./dom.js";
import { show } from "./markdown.js";
import { state } from "./state.js";

const LONGEST = 20_000; // characters of a question or an added text that are shown; the copy button has all
const log = $("log");
const views = new Map(); // by a message's id: { node, update, state? }
let actions = {}; // edit, regenerate, proceed, remove and choose, each of a message

export const setActions = (given) => (actions = given);

export const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
export const toEnd = () => (log.scrollTop = log.scrollHeight);

function shortened(text) {
  if (text.length <= LONGEST) return text;
  return `${text.slice(0, LONGEST)}\n… and ${counted(text.length - LONGEST, "more character")}. "Copy" copies all of them.`;
}

function changing(text, act) {
  const button = quiet(text, act);
  button.dataset.changes = "";
  return button;
}

// "2 of 3" between two buttons, where a message has other versions.
function versions(message) {
  const place = make("span", { className: "versions", hidden: true });
  const step = (by, label, sign) => {
    const button = changing(sign, () => actions.choose(message, by));
    return Object.assign(button, { ariaLabel: label });
  };
  const where = make("span");
  place.append(step(-1, "Previous version", "‹"), where, step(1, "Next version", "›"));
  const update = (conversation) => {
    const all = conversation.siblings(message), at = all.indexOf(message);
    place.hidden = all.length < 2;
    where.textContent = `${at + 1} of ${all.length}`;
    for (const [button, off] of [[place.firstChild, at === 0], [place.lastChild, at === all.length - 1]]) {
      button.ariaDisabled = String(off); // not `disabled`: the keyboard's focus stays
    }
  };
  return [place, update];
}

function questionView(message) {
  const [which, update] = versions(message);
  const added = message.texts.map(({ name, text }) => make("details", { className: "added" },
    make("summary", {}, `${name}, ${counted(text.length, "character")}`), make("pre", { tabIndex: 0 }, shortened(text))));
  const acts = make("div", { className: "acts" }, changing("Edit", () => actions.edit(message)), copyButton(() => textOf(message)),
    changing("Delete", () => actions.remove(message)), which);
  const text = make("div", { className: "text" }, shortened(message.content));
  const node = make("article", { className: "question" }, make("h3", { className: "unseen" }, "You"), make("div", { className: "said" }, text, ...added), acts);
  return { node, update };
}

// The line above a reply that has not begun, with a bar where the share of the prompt is known.
function stateLine() {
  const words = make("span"), fill = make("i");
  const bar = make("div", { className: "bar", role: "progressbar", ariaLabel: "Reading the prompt", ariaValueMin: "0", ariaValueMax: "100" }, fill);
  const node = make("div", { className: "state", hidden: true }, words, bar);
  const update = (now) => {
    node.hidden = !now;
    if (!now) return;
    words.textContent = now.text;
    bar.hidden = now.share === undefined;
    fill.style.width = `${100 * (now.share ?? 0)}%`;
    Object.assign(bar, { ariaValueNow: String(Math.floor(100 * (now.share ?? 0))), ariaValueText: now.text });
  };
  return [node, update];
}

function drawCalls(place, calls) {
  calls.forEach((call, at) => {
    const node = place.children[at] ?? place.appendChild(
      make("figure", { className: "call" }, make("figcaption"), make("pre", { tabIndex: 0 }, make("code"))));
    node.firstChild.textContent = `Calls ${call.name}`;
    node.querySelector("code").textContent = call.arguments;
  });
}

function replyView(message) {
  const [line, updateLine] = stateLine(), [which, updateVersions] = versions(message);
  const label = make("summary", {}, "Thinking"), thought = make("div"), text = make("div", { className: "text" }), calls = make("div");
  const details = make("details", { className: "thought", hidden: true }, label, thought);
  const wrong = make("p", { className: "wrong", role: "alert", hidden: true }), meta = make("p", { className: "meta" });
  const proceed = changing("Continue", () => actions.proceed(message)), again = changing("Regenerate", () => actions.regenerate(message));
  const copy = copyButton(() => message.content), edit = changing("Edit", () => actions.edit(message));
  const acts = make("div", { className: "acts" }, again, proceed, edit, copy, changing("Delete", () => actions.remove(message)), which, meta);
  const node = make("article", { className: "reply" }, make("h3", { className: "unseen" }, "Reply"), line, details, text, calls, wrong, acts);
  // `progress` is that of the reply while it is written.
  const update = (conversation, progress) => {
    const done = !progress;
    updateLine(progress?.reading(state.waiting) ?? null);
    details.hidden = !message.reasoning_content;
    label.textContent = progress?.thinking() || message.thought || "Thoughts";
    show(thought, message.reasoning_content, done);
    show(text, message.content, done);
    drawCalls(calls, message.calls);
    note(wrong, done ? (message.failure ?? "") : "");
    meta.textContent = done ? (message.summary ?? "") : progress.writing();
    again.textContent = message.failure ? "Try again" : "Regenerate";
    for (const button of acts.querySelectorAll("button")) button.hidden = !done;
    if (done) copy.hidden = edit.hidden = !message.content;
    if (done) proceed.hidden = !message.content || message.calls.length > 0 || message.finish === "stop" || message.id !== conversation.leaf;
    updateVersions(conversation);
    if (!done) which.hidden = true;
  };
  return { node, update };
}

function viewOf(message) {
  if (!views.has(message.id)) views.set(message.id, (message.role === "user" ? questionView : replyView)(message));
  return views.get(message.id);
}

// Draws the path again; articles that stay keep their place, and so the focus within.
export function draw(conversation) {
  const path = conversation.path(), nodes = path.map((message) => viewOf(message).node);
  const shown = [...log.querySelectorAll(":scope > article")];
  const same = nodes.findIndex((node, at) => node !== shown[at]);
  for (const node of shown.slice(same < 0 ? nodes.length : same)) node.remove();
  if (same >= 0) log.append(...nodes.slice(same));
  for (const message of path) viewOf(message).update(conversation, state.replies.get(message.id)?.progress);
  $("empty").hidden = path.length > 0;
}

// Draws one message; the reader stays at the end of the log, if there.
export function drawMessage(conversation, message, progress) {
  const follows = atEnd();
  viewOf(message).update(conversation, progress);
  if (follows) toEnd();
}

// Another conversation is opened: none of these messages is shown again.
export function forget() {
  for (const { node } of views.values()) node.remove();
  views.clear();
}

// Dims the messages that an edit of `message` leaves on another version of the conversation; none without it.
export function dim(conversation, message) {
  const path = conversation.path(), at = message ? path.indexOf(message) : path.length;
  path.forEach((each, place) => viewOf(each).node.classList.toggle("dropped", place >= at));
}

// Puts the focus on a button of the message, by its name.
export function focusOn(message, name) {
  const buttons = [...viewOf(message).node.querySelectorAll("button")];
  buttons.find((button) => (button.ariaLabel ?? button.textContent) === name)?.focus();
}
