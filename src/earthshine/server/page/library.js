// Where conversations are: in the browser's database while "keep" is on and that works, else in this tab's memory.
// A conversation leaves the memory once the database holds it, so what is in memory is what closing the tab would lose.

import { BrowserStore, MemoryStore, readable } from "./store.js";

const PROBLEMS = {
  QuotaExceededError: "This browser's storage is full. Export or delete conversations; until then new ones are lost when this tab is closed.",
  VersionError: "The conversations in this browser were kept by a newer version of this page. They are left as they are, and new ones are lost when this tab is closed.",
  BlockedError: "Another tab has an older version of this page open. Close it and load this page again to keep conversations.",
};
const OTHER = "This browser does not let the page keep conversations. They are lost when this tab is closed.";

export class Library {
  #memory = new MemoryStore();
  #browser = null;
  problem = ""; // why conversations are not kept although they should be

  // Opens the browser's database, and moves to it what is in memory.
  async keep() {
    this.problem = "";
    try {
      this.#browser = await BrowserStore.open();
    } catch (error) {
      return this.#fails(error);
    }
    for (const record of await this.#memory.all()) await this.save(record);
  }

  // Deletes the browser's copies; `open`, a record, stays in memory.
  async forget(open) {
    await this.#browser?.clear();
    this.#browser = null;
    this.problem = "";
    if (open) await this.#memory.put(open);
  }

  // How many conversations would be lost with this tab.
  get unsaved() {
    return this.#memory.size;
  }

  async save(record) {
    await this.#memory.put(record);
    if (!this.#browser) return;
    try {
      await this.#browser.put(record);
      if ((await this.#memory.get(record.id)) === record) await this.#memory.remove(record.id);
      this.problem = "";
    } catch (error) {
      this.#fails(error);
    }
  }

  #fails(error) {
    this.problem = PROBLEMS[error?.name] ?? OTHER;
  }

  // The conversation; null where its record has a form that this page can't read.
  async open(id) {
    return readable((await this.#memory.get(id)) ?? (await this.#of((store) => store.get(id), null)));
  }

  async remove(id) {
    await this.#browser?.remove(id);
    await this.#memory.remove(id);
  }

  async titles() {
    const found = new Map();
    for (const each of [...(await this.#of((store) => store.titles(), [])), ...(await this.#memory.titles())]) found.set(each.id, each);
    return [...found.values()].sort((a, b) => b.changed - a.changed);
  }

  // The ids of conversations that hold the text.
  async search(text) {
    const wanted = text.toLowerCase();
    return new Set([...(await this.#of((store) => store.search(wanted), [])), ...(await this.#memory.search(wanted))]);
  }

  async all() {
    const found = new Map();
    for (const each of [...(await this.#of((store) => store.all(), [])), ...(await this.#memory.all())]) found.set(each.id, each);
    return [...found.values()];
  }

  // What the browser's store answers; `otherwise` where there is none or it fails.
  async #of(question, otherwise) {
    try {
      return this.#browser ? await question(this.#browser) : otherwise;
    } catch (error) {
      this.#fails(error);
      return otherwise;
    }
  }
}
