// Conversations in this browser's storage, an entry each: two open tabs keep both's.

const PREFIX = "llama-jax:conversation:";
const FORMAT = "llama-jax conversations";
const DRAWN = { system: "", temperature: "0.6", top_p: "0.9", max_tokens: "", seed: "" };
/** Settings to begin with, as `llama-jax chat` draws. A model without a chat template seldom ends by itself. */
export const USUAL = { chat: DRAWN, text: { ...DRAWN, max_tokens: "256" } };
const memory = new Map(); // stands in where the browser gives a page no storage

/** A value that the page keeps: from this browser's storage, or this tab's where it is private. */
export function kept(name, storage = "localStorage") {
  try {
    return window[storage].getItem(`llama-jax:${name}`);
  } catch {
    return memory.get(storage + name) ?? null;
  }
}

/** Keeps a text, or forgets it for null. False where the browser does not. */
export function keep(name, value, storage = "localStorage") {
  if (value === null) memory.delete(storage + name);
  else memory.set(storage + name, value);
  try {
    if (value === null) window[storage].removeItem(`llama-jax:${name}`);
    else window[storage].setItem(`llama-jax:${name}`, value);
    return true;
  } catch {
    return false;
  }
}

/** `kind` is "chat", or "text" for a model that continues a text. */
export function fresh(kind) {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const id = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, kind, changed: Date.now(), settings: settingsOf(kind), turns: [] };
}

/** The settings last chosen for a kind. */
function settingsOf(kind) {
  try {
    return withAll(JSON.parse(kept(`settings:${kind}`)) ?? USUAL[kind]);
  } catch {
    return { ...USUAL[kind] };
  }
}

export function chosen({ kind, settings }) {
  keep(`settings:${kind}`, JSON.stringify(settings));
}

/** Every setting as the text of its field; those not given are the server's choice. */
function withAll(given) {
  return Object.fromEntries(Object.keys(DRAWN).map((name) => [name, String(given?.[name] ?? "")]));
}

export function titleOf({ turns }) {
  const text = turns.find((turn) => turn.content.trim())?.content.trim() ?? "";
  return text.split("\n")[0].slice(0, 80) || "Untitled";
}

/** All conversations, the last changed first. */
export function all() {
  let found = [];
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
    found = names.map((name) => parsed(localStorage.getItem(name)));
  } catch {
    const ours = [...memory].filter(([name]) => name.startsWith("localStorageconversation:"));
    found = ours.map(([, text]) => parsed(text));
  }
  return found.filter(Boolean).sort((a, b) => b.changed - a.changed);
}

/** False where the browser's storage is full or closed to the page. */
export function save(conversation) {
  return keep(`conversation:${conversation.id}`, JSON.stringify(conversation));
}

export function remove(id) {
  keep(`conversation:${id}`, null);
}

export function toFile(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** The conversations of an exported file. One that is here under its id is replaced. */
export function fromFile(text) {
  let file = null;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Choose one that Export has written.");
  }
  const whole = file?.format === FORMAT && Array.isArray(file.conversations) ? file.conversations.map(checked) : [];
  if (whole.length === 0 || whole.includes(null)) {
    throw new Error("This file has no conversations of this page's. Choose one that Export has written.");
  }
  return whole;
}

function parsed(text) {
  try {
    return checked(JSON.parse(text));
  } catch {
    return null;
  }
}

/** The fields that the page reads, each of its type; null for what is no conversation. */
function checked(value) {
  if (!value || !/^[\w-]{1,64}$/.test(value.id) || !Array.isArray(value.turns)) return null;
  if (!["chat", "text"].includes(value.kind)) return null;
  const wrong = value.turns.some((turn) => !["user", "assistant"].includes(turn?.role) || typeof turn.content !== "string");
  if (wrong) return null;
  const turns = value.turns.map((turn) => ({
    role: turn.role,
    content: turn.content,
    end: typeof turn.end === "string" ? turn.end : undefined,
    counts: numbers(turn.counts),
    failure: texts(turn.failure),
  }));
  return { id: value.id, kind: value.kind, changed: Number(value.changed) || 0, settings: withAll(value.settings), turns };
}

const only = (type, from) => from && Object.fromEntries(Object.entries(from).filter(([, value]) => typeof value === type));
const numbers = (from) => (typeof from === "object" && from ? only("number", from) : undefined);
const texts = (from) => (typeof from === "object" && from ? only("string", from) : undefined);
