// What the page's modules share: the open conversation, where conversations are kept, and the replies under way.

import { Conversation } from "./conversation.js";
import { Library } from "./library.js";
import { session } from "./store.js";

export const state = {
  conversation: new Conversation(),
  library: new Library(),
  replies: new Map(), // those that are written, by their message's id; see reply.js
  model: "", // the served model's name, once the server has sent it
  waiting: 0, // requests in the server's queue
  room: 0, // tokens that a conversation can hold, once the server has said it
};

// The reply that is written in the conversation, if one is.
export const replyIn = ({ id }) => [...state.replies.values()].find((reply) => reply.conversation.id === id);

const openHere = (id) => (id === state.conversation.id ? state.conversation : replyIn({ id })?.conversation);

// The conversation that is shown or written in this tab, or else the kept one: of two copies, one would miss the reply.
export async function conversationOf(id) {
  const kept = openHere(id) ? undefined : await state.library.open(id);
  return openHere(id) ?? kept; // it may have been opened meanwhile
}

const listeners = [];

// Calls `listener` whenever the list of conversations may have changed.
export const onKept = (listener) => listeners.push(listener);

// Keeps a conversation, once it holds something. It takes over a name that another tab has given it since.
export async function save(conversation = state.conversation) {
  session.set("open", state.conversation.id); // what this tab shows when it is loaded again
  if (conversation.messages.size || conversation.removed.length) {
    const kept = await state.library.save(conversation.record());
    if (kept?.titled > conversation.titled) Object.assign(conversation, { title: kept.title, titled: kept.titled });
  }
  for (const listener of listeners) listener();
}
