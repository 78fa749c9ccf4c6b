// The fleet, once per second while the page is visible: places, links, the threshold, the last requests and why.

import { $, counted, make, note, number } from "./dom.js";

const seconds = (value) => (value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(1)} s`);
const bytes = (value) => {
  const power = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
};
const below = (text) => make("span", { className: "below" }, text);
const cell = (...parts) => make("td", {}, ...parts.filter((part) => part !== null && part !== ""));
const row = (...cells) => make("tr", {}, ...cells);

function placeRow(place) {
  const does = place.decodes ? "" : "prefills for others";
  const state = place.problem ? make("span", { className: "bad" }, place.problem) : "works";
  const others = place.others_waiting ? below(`and ${place.others_waiting} of others`) : "";
  const speed = place.address === null && place.profile === "learned from 0" ? "not known yet" : seconds(place.seconds_of_4096);
  return row(
    cell(place.name, below([place.address, does].filter(Boolean).join(", "))), cell(state), cell(number(place.running), others),
    cell(number(place.waiting)), cell(seconds(place.queue_seconds)), cell(speed, below(place.profile)), cell(number(place.served)),
  );
}

const linkRow = (link) =>
  row(cell(link.source), cell(link.target), cell(`${bytes(link.bytes_per_second)} per second`), cell(bytes(link.queued_bytes)));

function decisionRow(found) {
  const prompt = found.prompt_tokens_estimated
    ? `about ${number(found.prompt_tokens_estimated)} tokens, ${number(found.reused_tokens_estimated ?? 0)} of them cached` : "";
  const status = found.status < 400 ? String(found.status) : make("span", { className: "bad" }, String(found.status));
  const why = [found.why, ...(found.failed ?? []).map((text) => `After ${text}.`), found.problem].filter(Boolean).join(" ");
  return row(
    cell(`${found.method} ${found.path}`, below(prompt)), cell(found.place ?? "none", found.prefill ? below(`prefill by ${found.prefill}`) : ""),
    cell(status), cell(found.first_byte_seconds === null ? "" : seconds(found.first_byte_seconds)), cell(why),
  );
}

function draw(fleet) {
  $("places").replaceChildren(...fleet.places.map(placeRow));
  $("links").replaceChildren(...fleet.links.map(linkRow));
  $("linked").hidden = !fleet.links.length;
  $("decisions").replaceChildren(...fleet.decisions.map(decisionRow));
  $("none").hidden = fleet.decisions.length > 0;
  $("threshold").textContent = fleet.threshold === null
    ? `Every place computes its own prompts (${fleet.threshold_why}).`
    : `Longer prompts than ${counted(Math.round(fleet.threshold), "token")} are prefilled elsewhere (${fleet.threshold_why}).`;
}

async function poll() {
  clearTimeout(poll.timer);
  poll.timer = setTimeout(poll, 1000);
  if (document.hidden) return;
  const key = sessionStorage.getItem("key");
  try {
    const response = await fetch("v1/fleet", { cache: "no-store", headers: key ? { authorization: `Bearer ${key}` } : {} });
    $("key").hidden = response.status !== 401;
    if (!response.ok) throw new Error(response.status === 401 ? "The router asks for an API key." : `The router answered ${response.status}.`);
    draw(await response.json());
    note($("problem"), "");
    document.body.classList.remove("stale");
  } catch (problem) {
    document.body.classList.add("stale");
    note($("problem"), problem instanceof TypeError ? "No answer from the router." : problem.message);
  }
}

$("key").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("secret").value.trim());
  poll();
};
document.onvisibilitychange = poll;
poll();
