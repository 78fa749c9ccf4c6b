// Where conversations are: in the browser's database while "keep" is on and that works, else in this tab's memory.
// A conversation leaves the memory once the database holds it, so what is in memory is what closing the tab would lose.

import { BrowserStore, MemoryStore, readable } from "./store.js";

const PROBLEMS = {
  QuotaExceededError: "This browser's storage is full. Export or delete conversations; until then new ones are lost when this tab is closed.",
  VersionError: "The conversations in this browser were kept by a newer version of this page. They are left as they are, and new ones are lost when this tab is closed.",
  BlockedError: "Another tab has an older version of this page open. Close it and load this page again to keep conversations.",
};
const NOT_DELETED = "This browser did not delete the conversations. They are still kept; try again, or delete this site's data in the browser's settings.";
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
    await this.#move();
  }

  // Deletes the browser's copies; `open`, a record, stays in memory. False where the browser can't delete them: then
  // conversations are kept as before.
  async forget(open) {
    const browser = this.#browser;
    this.#browser = null; // first, so that what is saved meanwhile stays in memory
    if (open) await this.#memory.put(open);
    try {
      await browser?.clear();
    } catch {
      this.#browser = browser;
      await this.#move();
      this.problem = NOT_DELETED;
      return false;
    }
    this.problem = "";
    return true;
  }

  // How many conversations would be lost with this tab.
  get unsaved() {
    return this.#memory.size;
  }

  // Returns the record as the browser keeps it, if it does.
  async save(record) {
    await this.#memory.put(record);
    return (await this.#move())?.get(record.id);
  }

  // Moves what is in memory to the browser's database, also what that refused before. Returns what was moved, by id.
  async #move() {
    const browser = this.#browser, moved = new Map();
    let failure = null;
    for (const record of browser ? await this.#memory.all() : []) {
      if (this.#browser !== browser) return moved; // it was switched off meanwhile
      try {
        moved.set(record.id, await browser.put(record));
        if ((await this.#memory.get(record.id)) === record) await this.#memory.remove(record.id);
      } catch (error) {
        failure = error;
      }
    }
    if (failure) this.#fails(failure);
    else if (browser && !this.#memory.size) this.problem = "";
    return moved;
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
    await this.#move(); // there may be room now
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
