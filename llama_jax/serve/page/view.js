// What a conversation looks like: turns of a chat, or one text that two have written.
import { button, copyButton, make } from "./dom.js";
import { show } from "./markdown.js";

/** The elements of a conversation. `does` has what its buttons do; `update(turn)` shows one anew. */
export function conversationView(conversation, does) {
  const views = new Map();
  const nodes = conversation.kind === "chat" ? chat(conversation, does, views) : text(conversation, does, views);
  return { nodes, update: (turn) => views.get(turn)?.() };
}

function chat(conversation, does, views) {
  return conversation.turns.map((turn, i) => {
    const yours = turn.role === "user";
    const said = make("div", { class: yours ? "said plain" : "said prose", dir: "auto" });
    const after = make("div", { class: "after" });
    const who = yours ? "You" : "Answer";
    const article = make("article", { class: `turn ${turn.role}`, "aria-label": who }, make("h2", {}, who), said, after);
    views.set(turn, () => {
      const busy = does.writing(turn);
      article.setAttribute("aria-busy", String(busy));
      if (yours) said.textContent = turn.content;
      else show(said, turn.content);
      if (busy) after.replaceChildren();
      else after.replaceChildren(...below(turn, yours ? edits(article, said, turn, i, does) : retries(turn, i, does)));
    });
    views.get(turn)();
    return article;
  });
}

const retries = (turn, i, does) => {
  const copying = turn.content ? [copyButton(() => turn.content)] : [];
  return [button("Retry", () => does.retry(i), { class: turn.failure ? "again" : "" }), ...copying];
};

function edits(article, said, turn, i, does) {
  const edit = () => {
    const field = editor(turn.content, "Your message", "Send", (content) => does.resend(i, content), does.refresh, does.follows(i) && "It replaces what follows.");
    said.replaceWith(field);
    article.lastChild.replaceChildren();
    field.firstChild.focus();
    field.firstChild.dispatchEvent(new Event("input"));
  };
  return [button("Edit", edit), copyButton(() => turn.content)];
}

/** A field with its own Enter and Esc. */
function editor(content, label, verb, done, cancel, hint = "") {
  const field = make("textarea", { dir: "auto", "aria-label": label, rows: 1, oninput: () => grow(field) });
  const send = () => field.value.trim() && done(field.value);
  field.value = content;
  field.addEventListener("keydown", (event) => {
    if (sends(event)) send();
    else if (event.key === "Escape") cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const row = make("div", { class: "row" }, make("span", { class: "quiet" }, hint || ""), button("Cancel", cancel), button(verb, send, { class: "main" }));
  return make("div", { class: "editor" }, field, row);
}

function text(conversation, does, views) {
  const { turns } = conversation;
  if (turns.length === 0) return [];
  const page = make("article", { class: "manuscript", "aria-label": "The text", dir: "auto" });
  const after = make("div", { class: "after" });
  const whole = () => turns.map((turn) => turn.content).join("");
  const edit = () => {
    const field = editor(whole(), "The text", "Continue", (content) => does.resend(0, content), does.refresh);
    page.replaceChildren(field);
    after.replaceChildren();
    field.firstChild.focus();
    grow(field.firstChild);
  };
  for (const turn of turns) {
    const part = make("span", { class: turn.role === "user" ? "yours" : "written" });
    page.append(part);
    views.set(turn, () => {
      const busy = does.writing(turn);
      page.setAttribute("aria-busy", String(busy));
      part.textContent = turn.content;
      if (turn !== turns.at(-1)) return;
      const last = turns.length - 1;
      const acts = turn.role === "user" ? [] : [button("Retry", () => does.retry(last)), button("Take back", () => does.take(last))];
      after.replaceChildren(...(busy ? [] : below(turn, [...acts, button("Edit", edit), copyButton(whole)])));
    });
    views.get(turn)();
  }
  return [page, after];
}

/** A turn's failure, its buttons, how it ended and what it cost. */
function below(turn, buttons) {
  const nodes = [];
  if (turn.failure) nodes.push(failureView(turn.failure));
  const acts = make("div", { class: "acts" }, ...buttons);
  return [...nodes, make("div", { class: "last" }, acts, make("p", { class: "notes" }, notesOf(turn)))];
}

export function failureView({ title, said, advice, until }) {
  const wait = until ? make("span", { class: "wait", "data-until": until }, waitOf(until)) : "";
  const words = said ? make("p", { class: "said-by" }, said) : "";
  return make("div", { class: "failure" }, make("strong", {}, title), words, make("p", {}, `${advice} `, wait));
}

export function waitOf(until) {
  const seconds = Math.ceil((until - Date.now()) / 1000);
  return seconds > 0 ? `Retry in ${seconds} s.` : "Retry now.";
}

const ENDS = {
  stopped: "stopped by you",
  left: "the page was closed before it ended",
  length: "ended at Max tokens or the model's context",
  error: "ended by numbers that are none (NaN): the server's log may say more",
};

export function notesOf({ counts = {}, end }) {
  const { tokens, about, rate, first, prompt, cached } = counts;
  const notes = [];
  if (end === "stop" && counts.tokens === 0) notes.push("nothing more came");
  if (ENDS[end]) notes.push(ENDS[end]);
  if (tokens) notes.push(`${about ? "about " : ""}${plural(tokens, "token")}`);
  if (rate) notes.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
  if (first >= 0.05) notes.push(`first after ${first.toFixed(first < 10 ? 1 : 0)} s`);
  if (prompt) notes.push(`prompt ${plural(prompt, "token")}${cached ? ` (${cached.toLocaleString("en")} cached)` : ""}`);
  return notes.join(" · ");
}

const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** Enter without Shift, and not the one that takes an input method's proposal. */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** Makes a field as high as its text. The style sheet says the most. */
export function grow(field) {
  if (CSS.supports("field-sizing", "content")) return; // the browser does it
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}
