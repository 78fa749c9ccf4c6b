// Starts the page: what can be done to a message, the keys, and the question before a tab with unsaved text is closed.

import { edit, editing, startComposer } from "./composer.js";
import { $, ask, counted } from "./dom.js";
import { buildGauges, poll } from "./gauges.js";
import { atEnd, draw, focusOn, setActions, toEnd } from "./messages.js";
import { ready, resumeAll, stop, write } from "./reply.js";
import { keepSettings, loadSettings } from "./settings.js";
import { replyIn, save, state } from "./state.js";
import { session } from "./store.js";
import { showMenu, startNew, startTitles } from "./titles.js";

async function remove(message) {
  const { conversation } = state, others = conversation.below(message).length - 1;
  if (!(await ask(`Delete this message${others ? ` and the ${counted(others, "message")} after it` : ""}? This can't be undone.`, "Delete"))) return;
  edit(null);
  conversation.remove(message);
  draw(conversation);
  $("question").focus();
  await save();
}

async function choose(message, by) {
  const { conversation } = state, all = conversation.siblings(message);
  const other = all[all.indexOf(message) + by];
  if (!other || replyIn(conversation)) return;
  edit(null);
  conversation.choose(other);
  draw(conversation);
  focusOn(other, by < 0 ? "Previous version" : "Next version");
  await save();
}

function regenerate(message) {
  if (!ready()) return;
  edit(null);
  const reply = state.conversation.add("assistant", "", message.parent);
  draw(state.conversation);
  return write(reply);
}

function proceed(message) {
  if (!ready()) return;
  edit(null);
  return write(message);
}

setActions({ edit, regenerate, proceed, remove, choose });
loadSettings();
startComposer();
for (const id of ["settings", "theme"]) $(id).addEventListener("change", keepSettings);
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  session.set("key", $("secret").value.trim());
  $("secret").value = "";
  $("key").hidden = true;
  $("question").focus();
  poll();
  resumeAll();
});
document.addEventListener("keydown", (event) => {
  if ($("dialog").open) return; // what it asks is about the conversation that is shown
  if (event.key === "Escape") {
    if (document.body.classList.contains("menu")) showMenu(false), $("menu").focus();
    else if (replyIn(state.conversation)) stop(state.conversation);
    else if (editing()) edit(null);
  }
  if (event.ctrlKey && event.shiftKey && event.code === "KeyO") event.preventDefault(), startNew();
  if (event.ctrlKey && !event.shiftKey && event.code === "KeyK") event.preventDefault(), showMenu(true), $("search").focus();
});
$("log").addEventListener("scroll", () => ($("end").hidden = atEnd()));
$("end").addEventListener("click", () => (toEnd(), $("log").focus()));
$("stop").addEventListener("click", () => stop(state.conversation));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return poll();
  for (const { conversation } of state.replies.values()) save(conversation);
});
window.addEventListener("beforeunload", (event) => {
  if (state.library.unsaved) event.preventDefault();
});
buildGauges();
poll();
startTitles();
