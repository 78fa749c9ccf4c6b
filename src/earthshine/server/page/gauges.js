// The server's gauges beside the conversation, once per second while the page is visible.

import { request } from "./api.js";
import { $, make, note, number } from "./dom.js";
import { state } from "./state.js";

const percent = (share) => (share === null ? "none yet" : `${Math.round(share * 100)} %`);
const bytes = (count) => {
  const power = count < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** power).toFixed(power ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
};
// [label, text, shares of a bar]; a share is null before there is anything to count
const GAUGES = [
  ["Tokens per second", (g) => g.tokens_per_second.toFixed(1)],
  ["Requests", (g) => `${g.running} running, ${g.waiting} waiting`],
  ["Memory", (g) => `${bytes(g.resident_bytes)} of ${bytes(g.budget_bytes)}`, (g) => [g.resident_bytes / g.budget_bytes]],
  ["Experts found in memory", (g) => percent(g.expert_hit_rate), (g) => [g.expert_hit_rate ?? 0]],
  ["Read from disk", (g) => `${bytes(g.disk_bytes_per_second)} per second`],
  ["Prompt tokens reused", (g) => percent(g.prefix_hit_rate), (g) => [g.prefix_hit_rate ?? 0]],
  ["Room for conversations", (g) => `${percent(g.pages_used / g.pages)} in use, ${percent(g.pages_cached / g.pages)} kept for reuse`,
    (g) => [g.pages_used / g.pages, g.pages_cached / g.pages]],
  ["Replies preempted", (g) => String(g.preemptions)],
];
const history = []; // tokens per second, of the last minute
let seen = null;

export function buildGauges() {
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

export async function poll() {
  if (document.hidden) return;
  try {
    const gauges = await (await request("v1/gauges")).json();
    seen = new Date();
    Object.assign(state, { model: gauges.model, waiting: gauges.waiting, room: gauges.context_tokens });
    const context = make("span", { className: "wordy" }, `, up to ${number(gauges.context_tokens)} tokens`);
    $("model").replaceChildren(gauges.model, context);
    document.body.classList.remove("stale");
    drawGauges(gauges);
    note($("problem"), gauges.problem ?? "");
  } catch (problem) {
    document.body.classList.add("stale");
    const since = seen ? ` since ${seen.toLocaleTimeString()}` : "";
    note($("problem"), problem.status === 401 ? "The server asks for an API key." : `No answer from the server${since}.`);
  }
  clearTimeout(poll.timer);
  poll.timer = setTimeout(poll, 1000);
}
