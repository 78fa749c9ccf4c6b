// What the page's modules share: the open conversation, where conversations are kept, and the reply under way.

import { Conversation } from "./conversation.js";
import { Library } from "./library.js";
import { session } from "./store.js";

export const state = {
  conversation: new Conversation(),
  library: new Library(),
  stopper: null, // an AbortController while a reply is streamed
  model: "", // the served model's name, once the server has sent it
  waiting: 0, // requests in the server's queue
  room: 0, // tokens that a conversation can hold, once the server has said it
};

const listeners = [];

// Calls `listener` whenever the list of conversations may have changed.
export const onKept = (listener) => listeners.push(listener);

// Keeps the open conversation, once it holds something.
export async function save() {
  const { conversation, library } = state;
  session.set("open", conversation.id); // what this tab shows when it is loaded again
  if (conversation.messages.size || conversation.removed.length) await library.save(conversation.record());
  for (const listener of listeners) listener();
}
