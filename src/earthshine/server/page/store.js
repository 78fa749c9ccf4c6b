// Conversations in the browser's own database (IndexedDB), or in this tab's memory. Both put, get, remove, list, search
// and return all. The database is shared by tabs: there, a record is merged with the one that it replaces, so that no
// tab's messages are lost. Also short texts of this tab.

import { Conversation } from "./conversation.js";

const NAME = "earthshine", VERSION = 1;

const titleOf = ({ id, name, changed, messages }) => ({ id, name, changed, writing: messages.some(({ stream }) => stream) });

function holds(record, wanted) {
  const texts = [record.name, ...record.messages.flatMap(({ content, reasoning_content, texts = [] }) =>
    [content, reasoning_content, ...texts.map((each) => each.text)])];
  return texts.some((text) => String(text ?? "").toLowerCase().includes(wanted));
}

// The record with the messages that `stored`, an older state of it, has in addition; each follows its parent. A message
// that one tab removed comes back where another tab has added one below it. Of two names the one given last is used.
function merged(record, stored) {
  const messages = new Map((Array.isArray(stored?.messages) ? stored.messages : []).map((each) => [each?.id, each]));
  for (const message of record.messages) {
    const further = message.stream && messages.get(message.id)?.content?.length > message.content.length; // by another tab
    if (!further) messages.set(message.id, message);
  }
  messages.delete(undefined); // an older form has no ids: the record holds all of it
  const removed = new Set([...record.removed, ...(stored?.removed ?? [])]), needed = new Set();
  for (const { id } of messages.values()) {
    if (removed.has(id)) continue;
    for (let at = id; messages.has(at) && !needed.has(at); at = messages.get(at).parent) needed.add(at);
  }
  const named = stored?.titled > record.titled ? { title: stored.title, titled: stored.titled, name: stored.title } : {};
  return { ...record, ...named, removed: [...removed].filter((id) => !needed.has(id)), messages: [...messages.values()].filter(({ id }) => needed.has(id)) };
}

export class MemoryStore {
  #records = new Map();

  get size() {
    return this.#records.size;
  }
  async put(record) {
    this.#records.set(record.id, record);
  }
  async get(id) {
    return this.#records.get(id);
  }
  async remove(id) {
    this.#records.delete(id);
  }
  async titles() {
    return [...this.#records.values()].map(titleOf);
  }
  async search(wanted) {
    return [...this.#records.values()].filter((record) => holds(record, wanted)).map(({ id }) => id);
  }
  async all() {
    return [...this.#records.values()];
  }
}

const finished = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class BrowserStore {
  #database;

  constructor(database) {
    this.#database = database;
  }

  // Rejects with the browser's error: VersionError where a newer version of the page has written the database.
  static open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const store of ["conversations", "titles"]) {
        if (!request.result.objectStoreNames.contains(store)) request.result.createObjectStore(store, { keyPath: "id" });
      }
    };
    const blocked = new Promise((_, reject) => (request.onblocked = () => reject(new DOMException("", "BlockedError"))));
    return Promise.race([finished(request), blocked]).then((database) => {
      database.onversionchange = () => database.close(); // a newer version of the page may take it over
      return new BrowserStore(database);
    });
  }

  // Runs `work` on both stores in one transaction, and waits until that is on disk.
  #write(work) {
    return new Promise((resolve, reject) => {
      const change = this.#database.transaction(["conversations", "titles"], "readwrite");
      change.oncomplete = () => resolve();
      change.onabort = change.onerror = () => reject(change.error ?? new DOMException("", "AbortError"));
      Promise.resolve(work(change.objectStore("conversations"), change.objectStore("titles"))).catch((error) => {
        reject(error);
        change.abort();
      });
    });
  }

  // Returns the record as it is kept.
  async put(record) {
    let kept;
    await this.#write(async (conversations, titles) => {
      kept = merged(record, await finished(conversations.get(record.id)));
      conversations.put(kept);
      titles.put(titleOf(kept));
    });
    return kept;
  }
  async get(id) {
    return finished(this.#database.transaction("conversations").objectStore("conversations").get(id));
  }
  remove(id) {
    return this.#write((...stores) => stores.forEach((store) => store.delete(id)));
  }
  clear() {
    return this.#write((...stores) => stores.forEach((store) => store.clear()));
  }
  async titles() {
    return finished(this.#database.transaction("titles").objectStore("titles").getAll());
  }
  async search(wanted) {
    const found = [];
    await this.#each((record) => holds(record, wanted) && found.push(record.id));
    return found;
  }
  async all() {
    const found = [];
    await this.#each((record) => found.push(record));
    return found;
  }

  // One record after the other: all at once could be more than the memory.
  #each(work) {
    return new Promise((resolve, reject) => {
      const request = this.#database.transaction("conversations").objectStore("conversations").openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve();
        try {
          work(cursor.value);
        } catch {
          // A record in a form of another version: it is left alone, and reported when it is opened.
        }
        cursor.continue();
      };
    });
  }
}

// Texts of this tab that outlast loading it again, unless storage is blocked.
const texts = new Map();
export const session = {
  get(name) {
    try {
      return texts.get(name) ?? sessionStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set(name, text) {
    texts.set(name, text);
    try {
      sessionStorage.setItem(name, text);
    } catch {
      // Blocked or full: it holds until the page is loaded again.
    }
  },
};

// The record as a conversation, or null where it has another version's form.
export function readable(record) {
  try {
    return Conversation.from(record);
  } catch {
    return null;
  }
}
