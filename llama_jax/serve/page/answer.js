// One answer: what is asked for, what its events say, what it cost.
import { Failure } from "./api.js";

/** The path and body of the request for a conversation's next turn. */
export function requestOf(conversation, model) {
  const { system, ...numbers } = conversation.settings;
  const body = { model: model.id };
  for (const [name, value] of Object.entries(numbers)) if (value !== "") body[name] = Number(value);
  const turns = conversation.turns.filter((turn) => turn.content);
  if (conversation.kind === "text") {
    return ["v1/completions", { ...body, prompt: turns.map((turn) => turn.content).join("") }];
  }
  if (!model.chat) throw new Failure("This model has no chat template.", "Begin a new text: it continues what you write.");
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, content } of turns) {
    if (messages.at(-1)?.role === role) messages.at(-1).content += `\n\n${content}`; // an answer between them failed
    else messages.push({ role, content });
  }
  return ["v1/chat/completions", { ...body, messages }];
}

/** Takes an event into a job: the text so far, when it came, how it ended. */
export function take(job, { choices, usage }) {
  const now = performance.now();
  const choice = choices?.[0];
  const text = choice?.delta?.content ?? choice?.text;
  job.heard = now;
  if (usage) job.usage = usage;
  if (choice?.finish_reason) job.turn.end = choice.finish_reason;
  if (!text) return;
  job.first ??= now;
  job.last = now;
  job.pieces += 1;
  job.turn.content += text;
}

/** What an answer cost. Without the server's own counts, each event is about a token. */
export function counts({ usage, pieces, began, first, last }) {
  const tokens = usage?.completion_tokens ?? pieces;
  const found = { tokens, about: usage ? 0 : 1, prompt: usage?.prompt_tokens ?? 0 };
  found.cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  if (first) found.first = (first - began) / 1000;
  if (last - first > 50 && tokens > 1) found.rate = ((tokens - 1) * 1000) / (last - first);
  return found;
}

/** An error as a turn keeps it. */
export function failed(error) {
  if (!(error instanceof Failure)) console.error(error);
  const unknown = { title: "The page did not understand the answer.", said: String(error.message), advice: "Reload the page, then retry." };
  const { title, said, advice, wait } = error instanceof Failure ? error : unknown;
  return { title, said, advice, ...(wait ? { until: Date.now() + wait * 1000 } : {}) };
}

/** Adds words to a text, after a space where two words would become one. */
export function add({ turns }, content) {
  const before = turns.map((turn) => turn.content).join("");
  const joins = /[\p{L}\p{N}.,;:!?…"'”’»)]$/u.test(before) && /^[\p{L}\p{N}]/u.test(content);
  if (joins) turns.at(-1).content += " ";
  turns.push({ role: "user", content });
}
