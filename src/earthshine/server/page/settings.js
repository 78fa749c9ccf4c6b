// The settings: read from the form, kept in the browser, and turned into fields of a request. The theme and the switch
// are always kept; the others only while conversations are.

import { $ } from "./dom.js";

const KEY = "earthshine.settings";
const FIELDS = ["system", "thinking", "most", "temperature", "top_p", "more"];
const OWN = ["model", "messages", "stream", "stream_options", "n"]; // the page needs these as they are

export function loadSettings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") ?? {};
  } catch {
    // Blocked, or not ours: the defaults.
  }
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
  const fields = furtherFields();
  if ($("thinking").value) fields.thinking = { type: $("thinking").value };
  const numbers = { max_completion_tokens: numberOf("most", "Longest reply"), temperature: numberOf("temperature", "Temperature"), top_p: numberOf("top_p", "Top p") };
  for (const [name, value] of Object.entries(numbers)) if (value !== undefined) fields[name] = value;
  return fields;
}

export const systemMessage = () => $("system").value.trim();
