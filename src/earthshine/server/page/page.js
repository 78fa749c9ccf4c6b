// The page's only script: one conversation through /v1/chat/completions, and the server's gauges beside it.
// Text from a model or a server enters the document as text nodes only; nothing is parsed as HTML.

const $ = (id) => document.getElementById(id);
const log = $("log"), question = $("question");

let messages = []; // { role, content, reasoning_content?, calls?, node }, questions and replies alternating
let edited = null; // the question that the composer's text will replace
let draft = ""; // the composer's text before that
let cleared = []; // the messages of the previous conversation, until this one begins
let stopper = null; // an AbortController while a reply is streamed
let model = "";

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const quiet = (text, onclick) => make("button", { type: "button", className: "quiet", textContent: text, onclick });

// ---- text to nodes: code blocks, headings, paragraphs; within lines `code` and **emphasis**

function blocksOf(text) {
  const blocks = [];
  let open = null; // the block that the next line may continue
  for (const line of text.split("\n")) {
    const fence = /^ *(`{3,}|~{3,}) *([^`\s]*)/.exec(line);
    if (open?.kind === "code") {
      if (fence && !fence[2] && fence[1].startsWith(open.fence)) open = null;
      else open.lines.push(line);
    } else if (fence) {
      blocks.push((open = { kind: "code", fence: fence[1], language: fence[2], lines: [] }));
    } else if (/^#{1,6} /.test(line)) {
      blocks.push({ kind: "h3", lines: [line.replace(/^#+ +/, "")] });
      open = null;
    } else if (!line.trim()) {
      open = null;
    } else if (open) {
      open.lines.push(line);
    } else {
      blocks.push((open = { kind: "p", lines: [line] }));
    }
  }
  return blocks;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, place) => {
    if (place % 2 === 0) return part;
    return part[0] === "`" ? make("code", {}, part.slice(1, -1)) : make("strong", {}, part.slice(2, -2));
  });
}

function blockNode({ kind, language, lines }) {
  const text = lines.join("\n");
  if (kind !== "code") return make(kind, {}, ...inline(text));
  const caption = make("figcaption", {}, make("span", {}, language || "text"), copyButton(() => text));
  return make("figure", {}, caption, make("pre", { tabIndex: 0 }, make("code", {}, text)));
}

// Renders `text` into `place`. Blocks that have not changed keep their nodes, and so focus and selection.
function show(place, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, at) => {
    const source = JSON.stringify(block);
    const old = place.children[at];
    if (old?.source === source) return;
    const node = Object.assign(blockNode(block), { source });
    old ? old.replaceWith(node) : place.append(node);
  });
  while (place.children.length > blocks.length) place.lastChild.remove();
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const carrier = make("textarea", { value: text, className: "unseen" }); // without HTTPS there is no navigator.clipboard
  document.body.append(carrier);
  carrier.select();
  document.execCommand("copy");
  carrier.remove();
}

function copyButton(text) {
  const button = quiet("Copy", async () => {
    await copy(text()).then(() => (button.textContent = "Copied"), () => (button.textContent = "Not allowed"));
    button.focus();
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

// ---- the conversation

function addQuestion(content) {
  const message = { role: "user", content };
  const acts = make("div", { className: "acts" }, quiet("Edit", () => edit(message)), copyButton(() => content));
  const text = make("div", { className: "text", textContent: content });
  message.node = make("article", { className: "question" }, make("h3", { className: "unseen" }, "You"), text, acts);
  append(message);
}

function append(message) {
  $("empty").hidden = true;
  messages.push(message);
  log.append(message.node);
  log.scrollTop = log.scrollHeight;
}

function cut(at) {
  for (const message of messages.splice(at)) message.node.remove();
  $("empty").hidden = messages.length > 0;
}

// A conversation that was cleared can be restored until another one begins.
function offer(messages) {
  cleared = messages;
  $("cleared").hidden = !messages.length;
}

function clear() {
  stopper?.abort();
  edit(null);
  if (messages.length) offer([...messages]);
  cut(0);
  question.focus();
}

function restore() {
  for (const message of cleared) append(message);
  offer([]);
  question.focus();
}

function edit(message) {
  if (!edited) draft = question.value;
  edited = message;
  const at = message ? messages.indexOf(message) : messages.length;
  messages.forEach((each, place) => each.node.classList.toggle("dropped", place >= at));
  $("editing").hidden = !message;
  $("editing").textContent = "Editing a question. Sending it replaces all messages after it; Esc cancels.";
  question.value = message ? message.content : draft;
  grow();
  question.focus();
}

function send() {
  const text = question.value.trim();
  if (!text || stopper) return;
  if (edited) cut(messages.indexOf(edited));
  else question.value = "";
  edit(null);
  offer([]);
  addQuestion(text);
  reply();
}

function addReply() {
  const message = { role: "assistant", content: "", reasoning_content: "", calls: [] };
  const parts = {
    label: make("summary", {}, "Thinking"), thought: make("div"), text: make("div", { className: "text" }),
    calls: make("div"), meta: make("p"), acts: make("div", { className: "acts", hidden: true }),
  };
  parts.details = make("details", { className: "thought", hidden: true }, parts.label, parts.thought);
  parts.acts.append(copyButton(() => message.content), parts.meta);
  const heading = make("h3", { className: "unseen" }, "Reply");
  message.node = make("article", { className: "reply" }, heading, parts.details, parts.text, parts.calls, parts.acts);
  append(message);
  return [message, parts];
}

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

function draw(message, parts) {
  const follows = atEnd();
  parts.details.hidden = !message.reasoning_content;
  show(parts.thought, message.reasoning_content);
  show(parts.text, message.content);
  message.calls.forEach((call, at) => {
    const node = parts.calls.children[at] ?? parts.calls.appendChild(
      make("figure", { className: "call" }, make("figcaption"), make("pre", { tabIndex: 0 }, make("code"))));
    node.firstChild.textContent = `Calls ${call.name}`;
    node.querySelector("code").textContent = call.arguments;
  });
  if (follows) log.scrollTop = log.scrollHeight;
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

function asked() {
  const system = $("system").value.trim();
  const sent = messages.filter((message) => message.content) // without empty replies, such as the one that is asked for
    .map(({ role, content, reasoning_content }) => ({ role, content, reasoning_content }));
  if (system) sent.unshift({ role: "system", content: system });
  const body = { model, messages: sent, stream: true, stream_options: { include_usage: true } };
  if ($("thinking").value) body.thinking = { type: $("thinking").value };
  if ($("most").value) body.max_completion_tokens = Number($("most").value);
  if ($("temperature").value) body.temperature = Number($("temperature").value);
  return JSON.stringify(body);
}

async function reply() {
  const [message, parts] = addReply(), start = performance.now();
  let usage, reason, first, last, thoughtUntil, waits = false, failure;
  const now = () => Math.ceil((performance.now() - start) / 1000);
  stopper = new AbortController();
  working(true);
  try {
    if (!model) await poll();
    const request = { method: "POST", body: asked(), signal: stopper.signal };
    const response = await ask("v1/chat/completions", request);
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Problem(500, chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      last = performance.now();
      first ??= last;
      take(message, choice.delta ?? {});
      if (message.content || message.calls.length) thoughtUntil ??= now();
      parts.label.textContent = thoughtUntil === undefined ? "Thinking" : `Thought for ${thoughtUntil} s`;
      if (!waits) requestAnimationFrame(() => (draw(message, parts), (waits = false)));
      waits = true;
    }
    if (!reason) throw new Problem(0, "The reply was cut off.");
  } catch (problem) {
    if (problem.name === "AbortError") reason = "stopped";
    else failure = problem;
  }
  stopper = null;
  draw(message, parts);
  finish(message, parts, failure, meta(usage, reason, (last - first) / 1000));
}

function finish(message, parts, failure, summary) {
  const follows = atEnd();
  parts.acts.hidden = false;
  parts.acts.firstChild.hidden = !message.content;
  parts.meta.textContent = summary;
  if (failure) {
    parts.acts.before(make("p", { className: "wrong", role: "alert" }, advice(failure)));
    parts.acts.prepend(quiet("Try again", () => (cut(messages.indexOf(message)), reply())));
  }
  working(false);
  if (follows) log.scrollTop = log.scrollHeight;
}

function meta(usage, reason, seconds) {
  const parts = [];
  if (reason === "stopped") parts.push("Stopped");
  if (reason === "length") parts.push("Stopped at the token limit");
  if (usage) {
    const rate = (usage.completion_tokens - 1) / seconds;
    parts.push(`${usage.completion_tokens} tokens${seconds > 0.1 ? `, ${rate.toFixed(1)} per second` : ""}`);
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens from the cache`);
  }
  return parts.join(" · ");
}

function working(busy) {
  log.setAttribute("aria-busy", String(busy));
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  for (const button of log.querySelectorAll(".question .quiet:first-child")) button.disabled = busy;
  if (!busy && document.activeElement === document.body) question.focus();
}

// ---- the server

class Problem extends Error {
  constructor(status, message, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  if (response.status === 401) $("key").hidden = false;
  const body = await response.json().catch(() => ({}));
  throw new Problem(response.status, body.error?.message ?? "", response.headers.get("retry-after"));
}

function advice({ status, message, wait }) {
  const hints = {
    400: "Start a new conversation or edit a question if this one is too long; otherwise check the settings.",
    401: "Enter the server's API key below, then try again.",
    404: "Reload the page: the server may have been started with another model.",
    413: "Send a shorter message.",
    429: `The server is busy. Try again${wait ? ` in ${wait} s` : " shortly"}.`,
    500: "Try again. If it fails again, the server's log has more.",
    503: `Try again${wait ? ` in ${wait} s` : " shortly"}.`,
  };
  if (status === undefined) return "The server can't be reached. Check that it runs, then try again.";
  return `${message} ${hints[status] ?? "Try again."}`.trim();
}

// The JSON of server-sent events, until [DONE] or the end.
async function* events(stream) {
  let rest = "";
  for (const reader = stream.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// ---- gauges: [label, text, shares of a bar]; a share is null before there is anything to count

const percent = (share) => (share === null ? "none yet" : `${Math.round(share * 100)} %`);
const number = (count) => count.toLocaleString("en");
const bytes = (count) => {
  const power = count < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** power).toFixed(power ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
};
const GAUGES = [
  ["Tokens per second", (g) => g.tokens_per_second.toFixed(1)],
  ["Requests", (g) => `${g.running} running, ${g.waiting} waiting`],
  ["Memory", (g) => `${bytes(g.resident_bytes)} of ${bytes(g.budget_bytes)}`, (g) => [g.resident_bytes / g.budget_bytes]],
  ["Expert hits", (g) => percent(g.expert_hit_rate), (g) => [g.expert_hit_rate ?? 0]],
  ["Read from disk", (g) => `${bytes(g.disk_bytes_per_second)}/s`],
  ["Prefix hits", (g) => percent(g.prefix_hit_rate), (g) => [g.prefix_hit_rate ?? 0]],
  ["Pages", (g) => `${number(g.pages_used)} used, ${number(g.pages_cached)} cached, ${number(g.pages_free)} free`,
    (g) => [g.pages_used / g.pages, g.pages_cached / g.pages]],
  ["Preemptions", (g) => String(g.preemptions)],
];
const history = []; // tokens per second, of the last minute
let seen = null;

function buildGauges() {
  for (const [label, , shares] of GAUGES) {
    const row = make("div", {}, make("dt", {}, label), make("dd"));
    const about = { role: "meter", ariaLabel: label, ariaValueMin: "0", ariaValueMax: "100" };
    if (shares) row.append(make("dd", { className: "wide" }, make("div", about, make("i"), make("i"))));
    $("gauges").append(row);
  }
}

function drawGauges(gauges) {
  GAUGES.forEach(([, text, shares], at) => {
    const [, value, wide] = $("gauges").children[at].children;
    value.textContent = text(gauges);
    if (!shares) return;
    const meter = wide.firstChild;
    const parts = shares(gauges).map((share) => Math.min(100, Math.max(0, 100 * share)) || 0);
    parts.forEach((part, place) => (meter.children[place].style.width = `${part}%`));
    Object.assign(meter, { ariaValueNow: parts[0].toFixed(0), ariaValueText: value.textContent });
  });
  history.push(gauges.tokens_per_second);
  if (history.length > 60) history.shift();
  const most = Math.max(1, ...history), left = 60 - history.length;
  $("rate").setAttribute("points", history.map((rate, at) => `${left + at},${(19 - (18 * rate) / most).toFixed(1)}`).join(" "));
}

function showProblem(text) {
  $("problem").hidden = !text;
  if ($("problem").textContent !== text) $("problem").textContent = text;
}

async function poll() {
  if (document.hidden) return;
  try {
    const gauges = await (await ask("v1/gauges")).json();
    seen = new Date();
    model = gauges.model;
    const context = make("span", { className: "wordy" }, `, ${number(gauges.context_tokens)} tokens of context`);
    $("model").replaceChildren(model, context);
    document.body.classList.remove("stale");
    drawGauges(gauges);
    showProblem(gauges.problem ?? "");
  } catch (problem) {
    document.body.classList.add("stale");
    const since = seen ? ` since ${seen.toLocaleTimeString()}` : "";
    showProblem(problem.status === 401 ? "The server asks for an API key." : `No answer from the server${since}.`);
  }
  clearTimeout(poll.timer);
  poll.timer = setTimeout(poll, 1000);
}

// ---- input

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("secret").value.trim());
  $("secret").value = "";
  $("key").hidden = true;
  question.focus();
  poll();
});
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (stopper) stopper.abort();
  else if (edited) edit(null);
});
$("stop").addEventListener("click", () => stopper?.abort());
$("new").addEventListener("click", clear);
$("back").addEventListener("click", restore);
document.addEventListener("visibilitychange", poll);
buildGauges();
poll();
