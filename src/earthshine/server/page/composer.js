// The form below the conversation: what is typed, texts that are added to it, and the message that is being edited.
// A text too long for a text field becomes an added text: laying out megabytes in a field would stall the page.

import { $, counted, make, note, quiet } from "./dom.js";
import { dim, draw, toEnd } from "./messages.js";
import { ready, write } from "./reply.js";
import { replyIn, save, state } from "./state.js";
import { session } from "./store.js";

const LONGEST = 100_000; // characters in the field
const LARGEST_FILE = 32 << 20; // bytes; the server accepts no larger request
const EDITING = {
  user: "Editing a question. Sending it adds a version; the old one and its replies are kept. Esc cancels.",
  assistant: "Editing a reply. Saving it adds a version; the old one is kept. Esc cancels.",
};

const question = $("question");
let texts = []; // { name, text } that were added
let edited = null; // the message that the composer's text is a new version of
let draft = { text: "", texts: [] }; // what the composer held before that

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

function drawTexts() {
  $("attached").hidden = !texts.length;
  $("attached").replaceChildren(...texts.map((each) => {
    const remove = quiet("Remove", () => {
      texts = texts.filter((other) => other !== each);
      drawTexts();
      question.focus();
    });
    remove.ariaLabel = `Remove ${each.name}`;
    return make("li", {}, make("span", {}, `${each.name}, ${counted(each.text.length, "character")}`), remove);
  }));
}

function add(name, text) {
  texts = [...texts, { name, text }];
  drawTexts();
}

const addPasted = (text) => add(`Pasted text ${texts.length + 1}`, text);

async function addFiles(files) {
  const refused = [];
  for (const file of files) {
    if (file.size > LARGEST_FILE) {
      refused.push(`${file.name} is larger than 32 MiB, the most that the server accepts.`);
      continue;
    }
    const text = await file.text().catch(() => null);
    if (text === null) refused.push(`${file.name} could not be read.`);
    else if (text.includes("\0")) refused.push(`${file.name} is not a text file; this model reads text only.`);
    else add(file.name, text);
  }
  note($("refused"), refused.join(" "));
  question.focus();
}

// Unsent text is restored when this tab reloads the page; attached texts are not.
const keepUnsent = () => session.set("unsent", edited ? draft.text : question.value);

function fill({ text, texts: given }) {
  question.value = text;
  texts = given;
  drawTexts();
  grow();
  keepUnsent();
}

// Begins to edit the message, or ends editing without one.
export function edit(message) {
  if (!edited && message) draft = { text: question.value, texts };
  if (!edited && !message) return;
  edited = message;
  dim(state.conversation, message);
  note($("editing"), message ? EDITING[message.role] : "");
  $("send").textContent = message?.role === "assistant" ? "Save" : "Send";
  fill(message ? { text: message.content, texts: message.texts } : draft);
  question.focus();
}

export const editing = () => edited !== null;

async function send() {
  const text = question.value.trim();
  if ((!text && !texts.length) || replyIn(state.conversation)) return;
  const { conversation } = state, role = edited?.role ?? "user";
  if (role === "user" && !ready()) return;
  const message = conversation.add(role, text, edited ? edited.parent : conversation.leaf);
  message.texts = texts;
  if (edited) edit(null);
  else fill({ text: "", texts: [] });
  const reply = role === "user" ? conversation.add("assistant", "") : null;
  draw(conversation);
  toEnd();
  if (reply) await write(reply);
  else await save();
}

export function startComposer() {
  fill({ text: session.get("unsent") ?? "", texts: [] });
  $("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  question.addEventListener("paste", (event) => {
    const { files } = event.clipboardData, text = event.clipboardData.getData("text/plain");
    if (files.length && !text) addFiles([...files]);
    else if (text.length > LONGEST) addPasted(text);
    else return;
    event.preventDefault();
  });
  question.addEventListener("input", () => {
    if (question.value.length > LONGEST) {
      addPasted(question.value);
      question.value = "";
    }
    grow();
    keepUnsent();
  });
  window.addEventListener("resize", grow);
  $("attach").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    addFiles([...$("file").files]);
    $("file").value = "";
  });
  $("composer").addEventListener("dragover", (event) => event.preventDefault());
  $("composer").addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}
