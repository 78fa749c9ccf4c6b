// The server: one function that asks it, the events of a stream, and what to do about each failure in words.

import { $ } from "./dom.js";
import { session } from "./store.js";

export class Problem extends Error {
  constructor(status, message, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

export async function request(path, options = {}) {
  const key = session.get("key");
  const headers = { ...options.headers, "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) {
    if (session.get("key") !== key) return request(path, options); // it was entered meanwhile
    $("key").hidden = false;
  }
  throw new Problem(response.status, body.error?.message ?? "", response.headers.get("retry-after"));
}

export function advice({ status, message, wait }) {
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

// The JSON of server-sent events, until [DONE] or the end. Without a TextDecoderStream: that would drop what it holds
// when the connection breaks, the last words of a reply.
export async function* events(stream) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = stream.getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      let parsed;
      try {
        parsed = JSON.parse(data);
      } catch {
        throw new Problem(0, "The server sent something that is not an event of a reply.");
      }
      yield parsed;
    }
  }
}
