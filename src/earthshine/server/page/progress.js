// What a reply is doing, in words: how much of the prompt is read and how long that takes, thoughts, text and rates.

import { counted, number } from "./dom.js";

// A rough duration: nobody needs seconds of an hour.
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

const REPLAY_MS = 1000; // after coming back to a reply the server sends again what it had sent

// Counts of one reply. Each piece of text is counted as a token, until the server's own count comes at the end. `times`
// are those of a message's `stream`: they outlast the page.
export class Progress {
  #times;
  #read = null; // the last prompt_progress of the stream, { total, cache, processed, time_ms, left_ms? }, and when it came
  #started = false; // the server has begun with the prompt
  #last; // when the last piece came
  #back = -Infinity; // when the page came back to it
  #untimed = 0; // tokens that came before the first one whose time is known
  tokens = 0;
  thoughtTokens = 0;
  lost = false; // whether the connection is lost

  constructor(times = { asked: Date.now() }) {
    this.#times = times;
  }

  // All of the reply comes again.
  restart() {
    [this.#back, this.#untimed, this.tokens, this.thoughtTokens] = [Date.now(), 0, 0, 0];
  }

  // Counts a chunk of the stream. Returns whether it changed one of the times.
  take(chunk, delta) {
    const now = Date.now(), times = this.#times, { first, thoughtEnd } = times, progress = chunk.prompt_progress;
    this.#started = true;
    if (progress?.total > 0) this.#read = { ...progress, at: now };
    const thought = delta?.reasoning_content || delta?.reasoning, written = delta?.content || delta?.tool_calls?.length;
    if (!thought && !written) return false;
    this.#last = now;
    this.tokens++;
    if (thought) this.thoughtTokens++;
    if (first === undefined && now - this.#back < REPLAY_MS) this.#untimed++;
    else times.first ??= now;
    if (written && this.thoughtTokens) times.thoughtEnd ??= now;
    return times.first !== first || times.thoughtEnd !== thoughtEnd;
  }

  get elapsed() {
    return (Date.now() - this.#times.asked) / 1000;
  }

  // Tokens per second after the first; undefined while there is nothing to divide by.
  rate(tokens = this.tokens) {
    const seconds = (this.#last - this.#times.first) / 1000, timed = tokens - this.#untimed;
    return timed > 1 && seconds > 0.1 ? (timed - 1) / seconds : undefined;
  }

  // { text, share } before the first token; share is undefined where the server does not say it.
  reading(waiting) {
    if (this.lost) return { text: "The connection to the server was lost; trying again" };
    if (this.tokens) return null;
    const waited = duration(this.elapsed);
    if (!this.#started) return { text: `${waiting ? "In the server's queue" : "Waiting for the server"}: ${waited}` };
    if (!this.#read) return { text: `Reading the prompt: ${waited}` };
    const { total, cache = 0, processed, time_ms: time, left_ms: known, at } = this.#read;
    const share = Math.min(1, processed / total), percent = `${Math.floor(100 * share)}%`;
    const computed = processed - cache;
    if (share === 1) return { text: "The prompt is read; the first word comes next", share };
    if (known === undefined && !(computed > 0 && time > 0)) return { text: `Reading the prompt: ${percent}`, share };
    const expected = known ?? ((total - processed) * time) / computed; // the server's, which knows that later tokens take longer
    const left = (expected - (Date.now() - at)) / 1000;
    return { text: `Reading the prompt: ${percent}, about ${duration(left)}`, share };
  }

  thinking() {
    if (!this.thoughtTokens) return "";
    const { first, thoughtEnd } = this.#times, seconds = first ? ((thoughtEnd ?? Date.now()) - first) / 1000 : 0;
    return `${thoughtEnd ? "Thought" : "Thinking"}: ${counted(this.thoughtTokens, "token")}, ${duration(seconds)}`;
  }

  writing() {
    if (!this.tokens) return "";
    const rate = this.rate();
    return `${counted(this.tokens, "token")}${rate === undefined ? "" : `, ${rate.toFixed(1)} per second`}`;
  }

  // `room`: the tokens that the conversation can hold; 0 where that is not known.
  summary(usage, reason, room) {
    const parts = [], rate = this.rate(usage?.completion_tokens);
    if (reason === "stopped") parts.push("Stopped");
    if (reason === "length") parts.push("Stopped at the token limit");
    if (usage) {
      parts.push(`${counted(usage.completion_tokens, "token")}${rate === undefined ? "" : `, ${rate.toFixed(1)} per second`}`);
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens from the cache`);
      const used = usage.prompt_tokens + usage.completion_tokens;
      if (room) parts.push(`${number(used)} of ${number(room)} tokens of context used`);
    } else if (this.tokens) parts.push(this.writing());
    return parts.join(" · ");
  }
}
