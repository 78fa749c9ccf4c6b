// The list of conversations: open, search, rename, delete, export and import, and the switch that keeps them.

import { Conversation, newId } from "./conversation.js";
import { edit } from "./composer.js";
import { $, ask, counted, download, make, note, quiet } from "./dom.js";
import { draw, forget, toEnd } from "./messages.js";
import { drawBusy, resume, resumeAll, stop } from "./reply.js";
import { keepSettings, onSwitched } from "./settings.js";
import { conversationOf, onKept, replyIn, save, state } from "./state.js";
import { readable, session } from "./store.js";

const SEARCH_MS = 200; // after the last key
let found = null; // the ids that a search has found; null without a search

const fileName = (name, ending) => `${name.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation"}.${ending}`;

function setOpen(conversation) {
  edit(null);
  state.conversation = conversation;
  session.set("open", conversation.id);
  forget();
  draw(conversation);
  resume(conversation);
  drawBusy();
  toEnd();
  $("question").focus();
  showMenu(false);
}

export async function startNew() {
  setOpen(new Conversation());
  await drawTitles();
}

async function open(id) {
  if (id === state.conversation.id) return;
  const conversation = await conversationOf(id);
  if (!conversation) return note($("kept"), "This conversation has a form that this page can't read; it is left as it is. Export all keeps a copy of it.");
  setOpen(conversation);
  await drawTitles();
}

async function rename() {
  const { conversation } = state, title = await ask("The conversation's new name:", "Rename", conversation.name);
  if (!title?.trim()) return;
  Object.assign(conversation, { title: title.trim().slice(0, 200), titled: Date.now() });
  await save(conversation);
}

async function remove() {
  const { conversation, library } = state;
  const written = replyIn(conversation) ? " The reply that is being written is stopped." : "";
  if (!(await ask(`Delete "${conversation.name}"? This can't be undone.${written}`, "Delete"))) return;
  await stop(conversation, true);
  await library.remove(conversation.id);
  await startNew();
}

function actsOnOpen() {
  const { conversation } = state;
  const asJson = () => download(fileName(conversation.name, "json"), "application/json", JSON.stringify(conversation.record(), null, 1));
  const asMarkdown = () => download(fileName(conversation.name, "md"), "text/markdown", conversation.markdown());
  return make("div", { className: "acts" }, quiet("Rename", rename), quiet("Save as Markdown", asMarkdown), quiet("Save as JSON", asJson), quiet("Delete", remove));
}

let drawn = 0; // how often; an older drawing that ends later is dropped

export async function drawTitles() {
  const mine = ++drawn, titles = await state.library.titles();
  if (mine !== drawn) return;
  const focused = $("titles").contains(document.activeElement) ? document.activeElement.textContent : null;
  const shown = titles.filter(({ id }) => !found || found.has(id));
  note($("found"), found ? (shown.length ? `${counted(shown.length, "conversation")} found` : "No conversation holds this text.") : "");
  $("titles").replaceChildren(...shown.map(({ id, name, writing }) => {
    const button = quiet(name, () => open(id)), current = id === state.conversation.id;
    if (writing) button.append(make("span", { className: "writing", role: "img", ariaLabel: "(a reply is being written)", title: "A reply is being written" }));
    if (current) button.ariaCurrent = "true";
    return make("li", {}, button, ...(current ? [actsOnOpen()] : []));
  }));
  if (focused) [...$("titles").querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  note($("kept"), state.library.problem || ($("keep").checked ? "" : "Conversations are lost when this tab is closed."));
}

async function search() {
  const text = $("search").value.trim(), ids = text ? await state.library.search(text) : null;
  if (text !== $("search").value.trim()) return;
  found = ids;
  await drawTitles();
}

async function forgetAll({ library, conversation, replies }) {
  const others = [...replies.values()].map((reply) => reply.conversation).filter((each) => each !== conversation);
  await Promise.all(others.map((each) => stop(each, true)));
  return library.forget(conversation.messages.size ? conversation.record() : null);
}

// Another tab has switched it: what this tab may have written since is deleted too.
async function followSwitch(keep) {
  $("keep").checked = keep;
  if (keep) await state.library.keep();
  else if (!(await forgetAll(state))) $("keep").checked = true; // it still keeps them
  await drawTitles();
}

async function switchKeeping() {
  const { library } = state;
  if ($("keep").checked) await library.keep();
  else {
    const count = (await library.titles()).length;
    if (count && !(await ask(`This deletes ${counted(count, "conversation")} from this browser; only the open one stays until the tab is closed. "Export all" saves them first.`, "Delete them"))) {
      $("keep").checked = true;
      return;
    }
    if (!(await forgetAll(state))) {
      $("keep").checked = true;
      return drawTitles();
    }
  }
  keepSettings();
  await save();
}

async function exportAll() {
  const conversations = await state.library.all();
  download("earthshine-conversations.json", "application/json", JSON.stringify({ conversations }, null, 1));
}

async function importFile(file) {
  let records;
  try {
    const value = JSON.parse(await file.text());
    records = value?.conversations ?? (Array.isArray(value) ? value : [value]);
    if (!Array.isArray(records)) throw new TypeError();
  } catch {
    return note($("kept"), `${file.name} holds no conversations; it must be JSON that this page exported.`);
  }
  const read = records.map(readable), known = new Set((await state.library.titles()).map(({ id }) => id));
  for (const conversation of read.filter(Boolean)) {
    if (known.has(conversation.id)) conversation.id = newId(); // a copy: nothing that is kept is replaced
    known.add(conversation.id);
    await state.library.save(conversation.record());
  }
  await drawTitles();
  const failed = read.filter((each) => !each).length;
  const problem = state.library.problem && ` ${state.library.problem}`;
  note($("kept"), `${counted(read.length - failed, "conversation")} imported${failed ? `; ${failed} could not be read` : ""}.${problem}`);
}

export function showMenu(open) {
  document.body.classList.toggle("menu", open);
  $("menu").ariaExpanded = String(open);
}

export async function startTitles() {
  onKept(drawTitles);
  let timer;
  $("search").addEventListener("input", () => (clearTimeout(timer), (timer = setTimeout(search, SEARCH_MS))));
  $("keep").addEventListener("change", switchKeeping);
  onSwitched(followSwitch);
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("importing").click());
  $("importing").addEventListener("change", async () => {
    const [file] = $("importing").files;
    if (file) await importFile(file);
    $("importing").value = "";
  });
  $("new").addEventListener("click", startNew);
  $("menu").addEventListener("click", () => showMenu($("menu").ariaExpanded !== "true"));
  if ($("keep").checked) await state.library.keep();
  const last = session.get("open"), conversation = last && (await state.library.open(last));
  if (conversation && !state.conversation.messages.size) setOpen(conversation);
  await drawTitles();
  $("titles").ariaBusy = "false";
  resumeAll();
}
