// One reply: the request with the path of its conversation, its stream, and what is left when that ends in any way.
// The server goes on with a reply whose connection is lost, and sends all of it again when the page asks for its id. So a
// reply goes on while the page is loaded again.

import { advice, events, Problem, request } from "./api.js";
import { textOf } from "./conversation.js";
import { $, note } from "./dom.js";
import { poll } from "./gauges.js";
import { atEnd, draw, drawMessage, toEnd } from "./messages.js";
import { Progress } from "./progress.js";
import { requestFields, settingsFit, systemMessage } from "./settings.js";
import { conversationOf, replyIn, save, state } from "./state.js";

const KEEP_SECONDS = 10; // between two copies of a reply that is being written
const MOST = 4; // at once: browsers open six connections to a server, and the gauges and "Stop" need one
const WAITS = [0, 1, 2, 4, 8, 15, 30]; // seconds before each attempt to come back to a reply
const HEADER = "x-conversation-id";

const pathOf = (message) => `v1/stream/${message.stream.id}`;
const shown = ({ conversation }) => conversation === state.conversation;

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

// Shows whether a reply is written in the open conversation.
export function drawBusy() {
  const busy = replyIn(state.conversation) !== undefined;
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

// Reads a stream into the message. Returns { usage, reason }.
async function read({ conversation, message, progress, changed }, response) {
  let usage, reason;
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Problem(500, chunk.error.message);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.[0];
    const timed = progress.take(chunk, choice?.delta);
    reason = choice?.finish_reason ?? reason;
    take(message, choice?.delta ?? {});
    if (timed) save(conversation);
    changed();
  }
  if (!reason) throw Object.assign(new Problem(0, "The reply was cut off."), { cut: true });
  return { usage, reason };
}

// The stream of a reply that has begun, from its first event on.
async function comeBack({ message, progress, stopper }) {
  const response = await request(pathOf(message), { signal: stopper.signal }), [content, thought] = message.stream.from;
  message.content = message.content.slice(0, content);
  message.reasoning_content = message.reasoning_content.slice(0, thought);
  message.calls = [];
  progress.restart();
  return response;
}

// Waits; ends at once when the reply is stopped.
const pause = (seconds, signal) => new Promise((resolve) => {
  setTimeout(resolve, 1000 * seconds);
  signal.addEventListener("abort", resolve);
});

// Reads the reply by `connect`, and comes back to it when the connection is lost.
async function follow(reply, connect) {
  let lost = null, connected = Infinity; // what ended the first connection; when this one began
  for (let attempt = 0; ; ) {
    try {
      const response = await connect(reply);
      [connect, connected, reply.begun, reply.progress.lost] = [comeBack, performance.now(), true, false];
      return await read(reply, response);
    } catch (problem) {
      if (problem.status === 404 && lost) throw lost; // the server has no more of it
      if (performance.now() - connected > 1000 * WAITS.at(-1)) attempt = 0;
      connected = Infinity;
      const again = (problem.status === undefined || problem.cut) && reply.begun && attempt < WAITS.length;
      if (!again || reply.stopper.signal.aborted) throw problem;
      lost ??= problem;
    }
    reply.progress.lost = true;
    await pause(WAITS[attempt++], reply.stopper.signal);
  }
}

function explain(message, problem) {
  const kept = message.content && message.finish === "failed" ? " What it wrote is kept; Continue goes on from there." : "";
  return `${advice(problem)}${kept}`;
}

// What another tab has kept of a reply that the server no longer has; null where that has not ended either.
async function keptElsewhere({ conversation, message }) {
  const kept = await state.library.open(conversation.id), found = kept?.messages.get(message.id);
  return found && !found.stream ? found : null;
}

// Keeps a copy of the reply and draws what only time changes, such as the time to go.
function startClock(reply, paint) {
  let kept = performance.now(), length = 0;
  return setInterval(() => {
    paint();
    const { message } = reply, now = message.content.length + message.reasoning_content.length;
    const due = performance.now() - kept > KEEP_SECONDS * 1000;
    if (due && now > length) [kept, length] = [performance.now(), now], save(reply.conversation);
  }, 1000);
}

async function end(reply, usage, problem) {
  const { conversation, message, progress } = reply, path = pathOf(message);
  if (problem) message.finish = reply.stopper.signal.aborted ? "stopped" : "failed";
  if (message.finish === "failed") message.failure = explain(message, problem);
  state.replies.delete(message.id);
  delete message.stream;
  message.calls = message.calls.filter(Boolean);
  message.thought = progress.thinking() || message.thought;
  message.summary = progress.summary(usage, message.finish, state.room);
  conversation.changed = Date.now();
  drawEnd(reply);
  if (!reply.dropped) await save(conversation);
  request(path, { method: "DELETE", keepalive: true }).catch(() => {}); // otherwise it ends by the server's limits
}

function drawEnd(reply) {
  if (!shown(reply)) return note($("ended"), `The reply in "${reply.conversation.name}" has ended.`);
  const follows = atEnd();
  draw(reply.conversation);
  drawBusy();
  if (follows) toEnd();
}

// Ends coming back in vain: without a key it is tried again once there is one, and another tab may have kept the reply.
async function leave(reply, { status }) {
  const found = status === 404 ? await keptElsewhere(reply) : null;
  if (status === 404 && !found) return end(reply, undefined, new Problem(0, "The server no longer has the rest of this reply."));
  state.replies.delete(reply.message.id);
  if (found) Object.assign(reply.message, found, { stream: undefined });
  drawEnd(reply);
}

async function run(conversation, message, connect, begun) {
  const progress = new Progress(message.stream), stopper = new AbortController();
  const reply = { conversation, message, progress, stopper, begun, dropped: false };
  const paint = () => state.replies.has(message.id) && shown(reply) && drawMessage(conversation, message, progress);
  reply.changed = painter(paint);
  reply.over = new Promise((resolve) => (reply.resolve = resolve));
  state.replies.set(message.id, reply);
  const clock = startClock(reply, paint);
  if (shown(reply)) drawBusy(), paint();
  let usage, problem;
  try {
    ({ usage, reason: message.finish } = await follow(reply, connect));
  } catch (error) {
    problem = error;
  }
  clearInterval(clock);
  if (begun && !stopper.signal.aborted && [401, 404].includes(problem?.status)) await leave(reply, problem);
  else await end(reply, usage, problem);
  reply.resolve();
}

// Whether a reply can be asked for; where not, the page says why above the message's field.
export function ready() {
  if (!settingsFit()) return false;
  if (state.replies.size < MOST) return true;
  note($("refused"), `${MOST} replies are being written, which is the most at once. Wait until one has ended, or stop one.`);
  return false;
}

// Writes `message`, an assistant's message of the open conversation; one with text is continued. `ready` must hold.
export async function write(message) {
  const { conversation } = state, path = conversation.path(), continues = message.content !== "";
  const fields = requestFields(); // as they are now: they may change while a model is awaited
  const id = `${message.id}-${Date.now().toString(36)}`; // a continued reply has another one
  message.stream = { id, from: [message.content.length, message.reasoning_content.length], asked: Date.now() };
  Object.assign(message, { failure: undefined, summary: undefined, finish: undefined });
  const connect = async ({ stopper }) => {
    if (!state.model) await poll();
    const body = bodyOf(path, fields, continues);
    return request("v1/chat/completions", { method: "POST", body, signal: stopper.signal, headers: { [HEADER]: id } });
  };
  const written = run(conversation, message, connect, false);
  toEnd();
  save(conversation);
  await written;
}

// Ends the reply in the conversation, if there is one. What is `dropped` is not kept.
export async function stop(conversation, dropped = false) {
  const reply = replyIn(conversation);
  if (!reply) return;
  reply.dropped = dropped;
  reply.stopper.abort();
  await reply.over;
}

// Comes back to a reply of the conversation that was being written when the page was left.
export function resume(conversation) {
  const message = [...conversation.messages.values()].findLast((each) => each.stream);
  if (message && !replyIn(conversation) && state.replies.size < MOST) run(conversation, message, comeBack, true);
}

// Comes back to the replies of all conversations, as soon as one may begin.
export async function resumeAll() {
  for (const { id } of (await state.library.titles()).filter(({ writing }) => writing)) {
    while (state.replies.size >= MOST) await Promise.race([...state.replies.values()].map((reply) => reply.over));
    const conversation = await conversationOf(id);
    if (conversation) resume(conversation);
  }
}
