// What a reply is doing, in words: how much of the prompt is read and how long that takes, thoughts, text and rates.

import { counted, number } from "./dom.js";

// A rough duration: nobody needs seconds of an hour.
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

// Counts of one reply. Each piece of text is counted as a token, until the server's own count comes at the end.
export class Progress {
  #began = performance.now();
  #read = null; // the last prompt_progress of the stream, { total, cache, processed, time_ms, left_ms? }, and when it came
  #started = false; // the server has begun with the prompt
  #first; // when the first piece came, and the last
  #last;
  tokens = 0;
  thoughtTokens = 0;
  #thoughtEnd; // when thinking ended

  take(chunk, delta) {
    const now = performance.now(), progress = chunk.prompt_progress;
    this.#started = true;
    if (progress?.total > 0) this.#read = { ...progress, at: now };
    const thought = delta?.reasoning_content || delta?.reasoning, written = delta?.content || delta?.tool_calls?.length;
    if (!thought && !written) return;
    this.#first ??= now;
    this.#last = now;
    this.tokens++;
    if (thought) this.thoughtTokens++;
    if (written && this.thoughtTokens) this.#thoughtEnd ??= now;
  }

  get elapsed() {
    return (performance.now() - this.#began) / 1000;
  }

  // Tokens per second after the first; undefined while there is nothing to divide by.
  rate(tokens = this.tokens) {
    const seconds = (this.#last - this.#first) / 1000;
    return tokens > 1 && seconds > 0.1 ? (tokens - 1) / seconds : undefined;
  }

  // { text, share } before the first token; share is undefined where the server does not say it.
  reading(waiting) {
    if (this.#first !== undefined) return null;
    const waited = duration(this.elapsed);
    if (!this.#started) return { text: `${waiting ? "In the server's queue" : "Waiting for the server"}: ${waited}` };
    if (!this.#read) return { text: `Reading the prompt: ${waited}` };
    const { total, cache = 0, processed, time_ms: time, left_ms: known, at } = this.#read;
    const share = Math.min(1, processed / total), percent = `${Math.floor(100 * share)}%`;
    const computed = processed - cache;
    if (share === 1) return { text: "The prompt is read; the first word comes next", share };
    if (known === undefined && !(computed > 0 && time > 0)) return { text: `Reading the prompt: ${percent}`, share };
    const expected = known ?? ((total - processed) * time) / computed; // the server's, which knows that later tokens take longer
    const left = (expected - (performance.now() - at)) / 1000;
    return { text: `Reading the prompt: ${percent}, about ${duration(left)}`, share };
  }

  thinking() {
    if (!this.thoughtTokens) return "";
    const seconds = ((this.#thoughtEnd ?? performance.now()) - this.#first) / 1000;
    return `${this.#thoughtEnd ? "Thought" : "Thinking"}: ${counted(this.thoughtTokens, "token")}, ${duration(seconds)}`;
  }

  writing() {
    if (this.#first === undefined) return "";
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
