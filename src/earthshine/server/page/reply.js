// One reply: the request with the path of the conversation, its stream, and what is left when that ends in any way.

import { advice, events, Problem, request } from "./api.js";
import { textOf } from "./conversation.js";
import { $ } from "./dom.js";
import { poll } from "./gauges.js";
import { atEnd, draw, drawMessage, toEnd } from "./messages.js";
import { Progress } from "./progress.js";
import { requestFields, systemMessage } from "./settings.js";
import { save, state } from "./state.js";

const KEEP_SECONDS = 10; // between two copies of a reply that is being written

function sent(message) {
  return message.role === "user"
    ? { role: "user", content: textOf(message) }
    : { role: "assistant", content: message.content, reasoning_content: message.reasoning_content };
}

function bodyOf(path, fields, continues) {
  const system = systemMessage();
  const messages = path.filter((message) => textOf(message)).map(sent); // without empty replies, such as the one asked for
  if (system) messages.unshift({ role: "system", content: system });
  const fixed = { model: state.model, messages, stream: true, stream_options: { include_usage: true }, return_progress: true };
  return JSON.stringify({ ...fields, ...fixed, ...(continues && { continue_final_message: true }) });
}

function take(message, delta) {
  message.content += delta.content ?? "";
  message.reasoning_content += delta.reasoning_content ?? delta.reasoning ?? "";
  for (const each of delta.tool_calls ?? []) {
    const call = (message.calls[each.index] ??= { id: each.id, name: "", arguments: "" });
    call.name += each.function?.name ?? "";
    call.arguments += each.function?.arguments ?? "";
  }
}

export function working(busy) {
  $("log").setAttribute("aria-busy", String(busy));
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  for (const button of $("log").querySelectorAll("[data-changes]")) button.disabled = busy;
  if (!busy && document.activeElement === document.body) $("question").focus();
}

// Draws when the browser next does, and less often the longer that takes: a long reply must not stall the page.
function painter(paint) {
  let waits = false, cost = 0;
  return () => {
    if (waits) return;
    waits = true;
    setTimeout(() => requestAnimationFrame(() => {
      const began = performance.now();
      paint();
      cost = performance.now() - began;
      waits = false;
    }), Math.min(2000, 4 * cost));
  };
}

// Reads the stream into the message. Returns { usage, reason }.
async function stream(message, body, progress, changed) {
  let usage, reason;
  if (!state.model) await poll();
  const response = await request("v1/chat/completions", { method: "POST", body: body(), signal: state.stopper.signal });
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Problem(500, chunk.error.message);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.[0];
    progress.take(chunk, choice?.delta);
    reason = choice?.finish_reason ?? reason;
    take(message, choice?.delta ?? {});
    changed();
  }
  if (!reason) throw new Problem(0, "The reply was cut off.");
  return { usage, reason };
}

function explain(message, problem) {
  const kept = message.content && message.finish === "failed" ? " What it wrote is kept; Continue goes on from there." : "";
  return `${advice(problem)}${kept}`;
}

// Writes `message`, an assistant's message of the open conversation; one with text is continued. The settings must fit.
export async function write(message) {
  const { conversation } = state, progress = new Progress(), continues = message.content !== "";
  const path = conversation.path(), fields = requestFields(); // as they are now: they may change while a model is awaited
  let over = false, kept = performance.now(), length = 0;
  const paint = () => over || drawMessage(conversation, message, progress);
  const clock = setInterval(() => {
    paint();
    const due = performance.now() - kept > KEEP_SECONDS * 1000, now = message.content.length + message.reasoning_content.length;
    if (due && now > length) [kept, length] = [performance.now(), now], save();
  }, 1000);
  Object.assign(message, { failure: undefined, summary: undefined, finish: undefined });
  state.stopper = new AbortController();
  working(true);
  paint();
  toEnd();
  save();
  let usage;
  try {
    ({ usage, reason: message.finish } = await stream(message, () => bodyOf(path, fields, continues), progress, painter(paint)));
  } catch (problem) {
    message.finish = problem.name === "AbortError" ? "stopped" : "failed";
    if (message.finish === "failed") message.failure = explain(message, problem);
  }
  clearInterval(clock);
  over = true;
  state.stopper = null;
  message.calls = message.calls.filter(Boolean);
  message.thought = progress.thinking() || message.thought;
  message.summary = progress.summary(usage, message.finish, state.room);
  conversation.changed = Date.now();
  const follows = atEnd();
  draw(conversation);
  working(false);
  if (follows) toEnd();
  await save();
}
