// The settings: read from the form, kept in the browser, and turned into fields of a request. The theme and the switch
// are always kept; the others only while conversations are.

import { $, note } from "./dom.js";

const KEY = "earthshine.settings";
const FIELDS = ["system", "thinking", "most", "temperature", "top_p", "more"];
const OWN = ["model", "messages", "stream", "stream_options", "n", "return_progress", "continue_final_message"]; // the page needs these as they are

function keptSettings() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}") ?? {};
  } catch {
    return {}; // blocked, or not ours: the defaults
  }
}

// Calls `follow` with true or false when another tab has switched the keeping of conversations on or off.
export function onSwitched(follow) {
  const compare = () => {
    const { keep } = keptSettings();
    if (typeof keep === "boolean" && keep !== $("keep").checked) follow(keep);
  };
  window.addEventListener("storage", ({ key }) => key === KEY && compare());
  window.addEventListener("pageshow", ({ persisted }) => persisted && compare()); // it was put aside, without events
}

export function loadSettings() {
  const kept = keptSettings();
  $("keep").checked = kept.keep !== false;
  $("theme").value = ["light", "dark"].includes(kept.theme) ? kept.theme : "";
  for (const id of FIELDS) if (typeof kept[id] === "string") $(id).value = kept[id];
}

export function keepSettings() {
  const theme = $("theme").value;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  const kept = { keep: $("keep").checked, theme };
  if (kept.keep) for (const id of FIELDS) kept[id] = $(id).value;
  try {
    localStorage.setItem(KEY, JSON.stringify(kept));
  } catch {
    // Blocked or full: they hold until the tab is closed.
  }
}

function furtherFields() {
  const text = $("more").value.trim();
  if (!text) return {};
  let fields;
  try {
    fields = JSON.parse(text);
  } catch {
    fields = null;
  }
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) throw new RangeError('"More fields of the request" must be a JSON object, such as {"seed": 1}.');
  const taken = OWN.find((name) => name in fields);
  if (taken) throw new RangeError(`"More fields of the request" can't hold "${taken}"; the page sets it.`);
  return fields;
}

function numberOf(id, label) {
  const field = $(id);
  if (!field.validity.valid) throw new RangeError(`"${label}" must be ${field.step === "1" ? "a whole number from 1 on" : `a number from ${field.min} to ${field.max}`}.`);
  return field.value === "" ? undefined : Number(field.value);
}

// The fields of a request that the settings give. Throws RangeError with a sentence for a setting that can't be sent.
export function requestFields() {
  const fields = furtherFields(), type = $("thinking").value;
  const own = {
    thinking: type ? { type } : undefined, max_completion_tokens: numberOf("most", "Longest reply"),
    temperature: numberOf("temperature", "Temperature"), top_p: numberOf("top_p", "Top p"),
  };
  for (const [name, value] of Object.entries(own)) {
    if (value === undefined) continue;
    if (name in fields) throw new RangeError(`"${name}" is set twice: by its own setting and by "More fields of the request". Remove one.`);
    fields[name] = value;
  }
  return fields;
}

// Whether the settings can be sent; where not, the page says why above the message's field.
export function settingsFit() {
  try {
    requestFields();
  } catch (problem) {
    if (!(problem instanceof RangeError)) throw problem;
    $("settings").open = true;
    note($("refused"), problem.message);
    return false;
  }
  note($("refused"), "");
  return true;
}

export const systemMessage = () => $("system").value.trim();
