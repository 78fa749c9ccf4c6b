// A conversation: a tree of messages of which one path is shown, so that editing and regenerating keep what was there.
// A message: { id, parent, role, content, reasoning_content, calls, ... }; `parent` is an id, or null for a first one.
// Also its forms outside the page: a record for the browser's store, JSON, and Markdown.

const FORMAT = 1; // of a record; one without a number holds the messages of one path, in order

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");

// Of a reply that is being written: the server's id of it, the characters of text and thoughts that the message had
// before, and when, in milliseconds since 1970, it was asked for, its first piece came and its thoughts ended.
function streamFrom(value) {
  const { id, from, asked, first, thoughtEnd } = value ?? {};
  if (typeof id !== "string" || !/^[\w.:-]{1,128}$/.test(id) || ![from?.[0], from?.[1], asked].every(Number.isFinite)) return undefined;
  return { id, from: [from[0], from[1]], asked, first, thoughtEnd };
}

function messageFrom(value, parent) {
  const { id = newId(), role, content = "", reasoning_content = "", calls = [], summary, failure, finish, thought, texts, stream } = value;
  const named = parent === undefined ? (value.parent ?? null) : parent;
  const fits = [id, content, reasoning_content].every((text) => typeof text === "string") && Array.isArray(calls) &&
    ["user", "assistant"].includes(role) && (named === null || typeof named === "string") &&
    calls.every((call) => typeof call?.name === "string" && typeof call.arguments === "string") &&
    [summary, failure, finish, thought].every((text) => text === undefined || typeof text === "string");
  if (!fits) throw new TypeError("not a message");
  const kept = (Array.isArray(texts) ? texts : []).filter((each) => typeof each?.text === "string")
    .map((each) => ({ name: String(each.name), text: each.text }));
  return { id, parent: named, role, content, reasoning_content, calls, texts: kept, summary, failure, finish, thought, stream: streamFrom(stream) };
}

export class Conversation {
  id = newId();
  title = ""; // given by the reader; else the first question's beginning
  titled = 0; // when it was given; the newest is used
  changed = Date.now();
  messages = new Map(); // by id, in order of creation
  removed = []; // ids, so that another tab's copy does not bring them back
  leaf = null; // the last message of the path that is shown
  #children = new Map(); // the messages that follow one, by its id; without it, long conversations take quadratic time

  get name() {
    const first = [...this.messages.values()].find((message) => message.role === "user");
    return this.title || (first?.content || first?.texts?.[0]?.name || "").trim().split("\n")[0].slice(0, 80) || "New conversation";
  }

  add(role, content, parent = this.leaf) {
    const message = this.#append(messageFrom({ role, content }, parent));
    this.changed = Date.now();
    return message;
  }

  #append(message) {
    this.messages.set(message.id, message);
    const beside = this.children(message.parent);
    if (beside.push(message) === 1) this.#children.set(message.parent, beside);
    this.leaf = message.id;
    return message;
  }

  path() {
    const found = [];
    for (let at = this.messages.get(this.leaf); at; at = this.messages.get(at.parent)) found.push(at);
    return found.reverse();
  }

  children(id) {
    return this.#children.get(id) ?? [];
  }

  siblings(message) {
    return this.children(message.parent);
  }

  // Shows the path through the message and the newest of what follows it.
  choose(message) {
    this.leaf = message.id;
    for (let next; (next = this.children(this.leaf).at(-1)); ) this.leaf = next.id;
  }

  // The message and all that follows it, on every path.
  below(message) {
    const found = [message];
    for (const each of found) found.push(...this.children(each.id)); // also of those that this adds
    return found;
  }

  remove(message) {
    const others = this.siblings(message).filter((each) => each !== message);
    this.#children.set(message.parent, others);
    for (const { id } of this.below(message)) {
      this.messages.delete(id);
      this.#children.delete(id);
      this.removed.push(id);
    }
    if (others.length) this.choose(others.at(-1));
    else this.leaf = message.parent;
    this.changed = Date.now();
  }

  record() {
    const { id, title, titled, changed, removed, leaf } = this;
    return { format: FORMAT, id, title, titled, name: this.name, changed, leaf, removed, messages: [...this.messages.values()] };
  }

  // A conversation from a record or from someone's file. Throws TypeError for anything else.
  static from(record) {
    if (!Array.isArray(record?.messages) || (record.format ?? 0) > FORMAT) throw new TypeError("not a conversation");
    const made = new Conversation();
    if (typeof record.id === "string" && record.id) made.id = record.id;
    if (typeof record.title === "string") made.title = record.title;
    if (Number.isFinite(record.titled)) made.titled = record.titled;
    if (Number.isFinite(record.changed)) made.changed = record.changed;
    if (Array.isArray(record.removed)) made.removed = record.removed.filter((id) => typeof id === "string");
    for (const value of record.messages) {
      if (!record.format && value?.role === "system") continue; // of a request's messages; instructions are a setting
      const message = messageFrom(value ?? {}, record.format ? undefined : made.leaf);
      if (message.parent !== null && !made.messages.has(message.parent)) throw new TypeError("a message follows none");
      if (made.messages.has(message.id)) throw new TypeError("two messages have one id");
      made.#append(message);
    }
    if (made.messages.has(record.leaf)) made.leaf = record.leaf;
    return made;
  }

  markdown() {
    const parts = this.path().map((message) => {
      const thought = message.reasoning_content && `> ${message.reasoning_content.trim().replaceAll("\n", "\n> ")}\n\n`;
      const calls = message.calls.map((call) => `\n\nCalls ${call.name}:\n\n${fenced(call.arguments, "json")}`).join("");
      return `## ${message.role === "user" ? "You" : "Reply"}\n\n${thought}${textOf(message)}${calls}`.trim();
    });
    return `# ${this.name}\n\n${parts.join("\n\n")}\n`;
  }
}

function fenced(text, language) {
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((run) => run[0].length + 1)));
  return `${fence}${language}\n${text}\n${fence}`;
}

// What the model reads of a message: its text, then the texts that were added to it.
export function textOf({ content, texts = [] }) {
  return [content, ...texts.map(({ name, text }) => `${name}:\n\n${fenced(text, "")}`)].filter(Boolean).join("\n\n");
}
