// The page: conversations with the model that this server has. State lives here, and nowhere else.
import { add, counts, failed, requestOf, take } from "./answer.js";
import { Failure, events, models, unready } from "./api.js";
import { button, make, reader, say } from "./dom.js";
import * as store from "./store.js";
import { conversationView, failureView, grow, sends, waitOf } from "./view.js";

const $ = (id) => document.getElementById(id);
const deleted = new Set(); // conversations whose answer may end after them
const jobs = new Map(); // answers that are being written, by the conversation's id
let served = []; // what /v1/models has
let model = null;
let current = store.fresh("chat");
let view = null;
let follow = true; // the page scrolls with the words
let unlocked = null; // what to do again once there is a key

// ---- answers

async function answer(conversation) {
  const turn = { role: "assistant", content: "" };
  const job = { conversation, turn, abort: new AbortController(), began: performance.now(), heard: performance.now(), pieces: 0 };
  const read = reader();
  conversation.turns.push(turn);
  jobs.set(conversation.id, job);
  follow = true;
  changed(conversation);
  say("The model reads.");
  try {
    if (!model) await load();
    for await (const event of events(...requestOf(conversation, model), key(), job.abort.signal)) {
      take(job, event);
      later(conversation, job);
      if (current === conversation) read(turn.content);
    }
  } catch (error) {
    if (job.abort.signal.aborted) turn.end = "stopped";
    else turn.failure = failed(error);
    if (error.status === 401) askKey(error.advice, () => current === conversation && retry(conversation.turns.indexOf(turn)));
  }
  jobs.delete(conversation.id);
  turn.counts = counts(job);
  if (current === conversation) read(turn.content, true);
  say(turn.failure ? `${turn.failure.title} ${turn.failure.advice}` : turn.end === "stopped" ? "Stopped." : "The answer has ended.");
  changed(conversation, turn);
}

/** Shows a job's words with the next frame, and stores them once a second. */
function later(conversation, job) {
  job.frame ??= requestAnimationFrame(() => {
    job.frame = undefined;
    if (current !== conversation) return;
    view.update(job.turn);
    progress();
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
  });
  if (performance.now() - (job.stored ?? 0) < 1000) return;
  job.stored = performance.now();
  if (!deleted.has(conversation)) store.save(conversation);
}

const does = {
  writing: (turn) => jobs.get(current.id)?.turn === turn,
  refresh: () => draw(),
  follows: (i) => i + 1 < current.turns.length,
  retry,
  resend(i, content) {
    stop();
    current.turns.splice(i, Infinity, { role: "user", content });
    answer(current);
    toMessage();
  },
  take(i) {
    current.turns.splice(i, Infinity);
    changed(current);
    toMessage();
  },
};

function retry(i) {
  if (i < 0) return;
  stop();
  current.turns.splice(i, Infinity);
  answer(current);
  toMessage();
}

function stop(conversation = current) {
  const job = jobs.get(conversation.id);
  job?.abort.abort();
  return Boolean(job);
}

function send() {
  const field = $("message");
  const content = field.value;
  const text = current.kind === "text";
  if (jobs.has(current.id) || !(content.trim() || (text && current.turns.length > 0))) return;
  if (text && content.trim()) add(current, content);
  else if (!text) current.turns.push({ role: "user", content: content.trim() });
  field.value = "";
  grow(field);
  answer(current);
}

// ---- what is shown

function changed(conversation, turn) {
  if (deleted.has(conversation)) return;
  conversation.changed = Date.now();
  const whole = store.save(conversation);
  if (!whole) notice(new Failure("This browser keeps no more.", "Export the conversations, delete some, or leave this tab open."));
  if (current === conversation) draw(turn);
  list();
}

/** Draws the conversation, or only a turn of it that is there. */
function draw(turn) {
  if (turn) view.update(turn);
  else {
    view = conversationView(current, does);
    $("turns").replaceChildren(...(current.turns.length > 0 ? view.nodes : [welcome()]));
  }
  const text = current.kind === "text";
  const busy = jobs.has(current.id);
  $("send").textContent = busy ? "Stop" : text ? "Continue" : "Send";
  $("send").classList.toggle("busy", busy);
  $("asks").textContent = text ? "Words to add to the text" : "Message";
  $("message").placeholder = !text ? "Write a message" : current.turns.length > 0 ? "Add words, or let it go on" : "Begin a text";
  $("new").textContent = kind() === "text" ? "New text" : "New conversation";
  $("system-field").hidden = text;
  $("sheet").querySelector("[name=max_tokens]").placeholder = text ? "16" : "to its end";
  progress();
  if (follow) scrollTo(0, document.documentElement.scrollHeight);
}

function welcome() {
  const name = make("em", {}, model?.id ?? "the model");
  if (current.kind === "chat") {
    return make("div", { class: "welcome" }, make("p", {}, "Talk with ", name, "."), make("p", { class: "quiet" }, "What you write stays in this browser and goes to this server alone."));
  }
  const begin = (text) => button(text, () => ($("message").value = text) && send());
  const starts = ["Once upon a time", "One day, a little fox", "Lily found a key"].map(begin);
  return make("div", { class: "welcome" }, make("p", {}, "Begin a text; ", name, " goes on."),
    make("p", { class: "quiet" }, "This model has no chat template: it does not answer, it continues. Your own words are underlined."),
    make("div", { class: "starts" }, ...starts));
}

/** Where there is a keyboard; elsewhere it would cover the page with one. */
function toMessage() {
  if (matchMedia("(pointer: fine)").matches) $("message").focus();
}

function list() {
  const items = store.all().map((conversation) => {
    const title = store.titleOf(conversation);
    const open = button(title, () => choose(conversation), { class: "open" });
    if (conversation.id === current.id) open.setAttribute("aria-current", "true");
    if (jobs.has(conversation.id)) open.prepend(make("span", { class: "dot" }, make("span", { class: "unseen" }, "Being written: ")));
    const forget = button("", () => discard(conversation), { class: "forget", title: "Delete", "aria-label": `Delete “${title}”` });
    return make("li", {}, open, forget);
  });
  $("list").replaceChildren(...items);
  $("export").disabled = items.length === 0;
}

function choose(conversation) {
  current = jobs.get(conversation.id)?.conversation ?? conversation;
  follow = true;
  drawer(false);
  draw();
  list();
  toMessage();
}

/** How far an answer is, in numbers that change while it is written. */
function progress() {
  const job = jobs.get(current.id);
  const now = performance.now();
  const silent = job ? (now - job.heard) / 1000 : 0;
  let words = "";
  if (job?.first) words = `about ${job.pieces} tokens, ${((job.pieces * 1000) / (now - job.first + 1)).toFixed(1)} a second`;
  else if (job) words = `${job.why || "reading"}, ${Math.floor((now - job.began) / 1000)} s`;
  if (silent > 30) words = `nothing has come for ${Math.floor(silent)} s; stop and retry, or see the server's log`;
  $("progress").textContent = words;
  $("latest").hidden = follow;
  for (const wait of document.querySelectorAll(".wait")) wait.textContent = waitOf(Number(wait.dataset.until));
}

/** Learns why a first word is late: a server that has just started still compiles. */
async function wonder() {
  for (const job of jobs.values()) {
    if (!job.first && performance.now() - job.began > 2000) job.why = await unready();
  }
}

function notice(failure, ...more) {
  $("notice").replaceChildren(...(failure ? [failureView({ ...failed(failure) }), ...more] : []));
}

// ---- conversations

function begin() {
  choose(store.fresh(kind()));
}

function discard(conversation) {
  conversation = jobs.get(conversation.id)?.conversation ?? conversation;
  deleted.add(conversation);
  stop(conversation);
  store.remove(conversation.id);
  const back = button("Undo", () => {
    deleted.delete(conversation);
    store.save(conversation);
    $("deleted").replaceChildren();
    choose(conversation);
  });
  $("deleted").replaceChildren("Deleted. ", back);
  if (conversation.id === current.id) begin();
  list();
  back.focus();
}

function exported() {
  const url = URL.createObjectURL(new Blob([store.toFile(store.all())], { type: "application/json" }));
  make("a", { href: url, download: `conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function imported() {
  const [file] = $("file").files;
  if (!file) return;
  try {
    const found = store.fromFile(await file.text());
    for (const conversation of found) store.save(conversation);
    notice(null);
    choose(found[0]);
    say(`${found.length} imported.`);
  } catch (error) {
    notice(new Failure("Nothing was imported.", error.message));
  }
  $("file").value = "";
}

// ---- model, key, settings, theme

async function load() {
  served = await models(key());
  model = served.find((one) => one.id === store.kept("model")) ?? served[0];
  if (!model) throw new Failure("This server has no model.", "See how it was started.");
  $("model").textContent = model.id;
  $("model").hidden = served.length > 1;
  $("models").hidden = served.length < 2;
  $("models").replaceChildren(...served.map(({ id }) => make("option", { value: id, selected: id === model.id }, id)));
  document.title = `${model.id} – llama-jax`;
  notice(null);
  if (current.turns.length === 0) current = store.fresh(kind());
}

const kind = () => (model && !model.chat ? "text" : "chat");

async function start() {
  try {
    await load();
  } catch (error) {
    if (error.status === 401) askKey(error.advice, start);
    else notice(error, button("Retry", start));
  }
  draw();
}

const key = () => store.kept("key", "sessionStorage") || store.kept("key") || "";

function askKey(why, then) {
  unlocked = then;
  $("lock-why").textContent = key() && then ? `The server does not take the key that this page has. ${why}` : why;
  if (!$("lock").open) $("lock").showModal();
}

function keyGiven() {
  const { key: field, remember } = $("lock").querySelector("form").elements;
  const given = field.value.trim() || null;
  store.keep("key", given, "sessionStorage");
  store.keep("key", remember.checked ? given : null);
  field.value = "";
  $("lock").close();
  (unlocked ?? start)();
  unlocked = null;
}

const settingFields = () => [...$("sheet").querySelectorAll("[name]")];

function settingsShown() {
  for (const field of settingFields()) field.value = current.settings[field.name];
  $("api").querySelector("code").textContent = new URL("v1", location.href).href;
  $("sheet").showModal();
}

/** Takes each field that is in order; the form does not close over one that is not. */
function settingsTaken() {
  for (const field of settingFields()) if (field.checkValidity()) current.settings[field.name] = field.value;
  store.chosen(current);
  if (current.turns.length > 0) store.save(current);
}

const THEMES = { "": "as the system", light: "light", dark: "dark" };

function themed(theme) {
  const known = theme in THEMES ? theme : "";
  if (known) document.documentElement.dataset.theme = known;
  else delete document.documentElement.dataset.theme;
  $("theme").title = `Colours: ${THEMES[known]}`;
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[known]}. Change`);
  store.keep("theme", known || null);
}

function drawer(open) {
  document.body.classList.toggle("drawn", open);
  $("page").inert = open;
  $("drawer").setAttribute("role", open ? "dialog" : "navigation");
  $("drawer").setAttribute("aria-modal", String(open));
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("close").focus();
}

// ---- what the page listens to

const on = (id, event, listener) => $(id).addEventListener(event, listener);

on("composer", "submit", (event) => {
  event.preventDefault();
  if (!stop()) send();
});
on("message", "keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  send();
});
on("message", "input", () => grow($("message")));
on("new", "click", begin);
on("export", "click", exported);
on("import", "click", () => $("file").click());
on("file", "change", imported);
on("keys", "click", () => askKey("Needed only where the server was started with keys. An empty one forgets it.", null));
on("menu", "click", () => drawer(true));
on("close", "click", () => {
  drawer(false);
  $("menu").focus();
});
on("settings", "click", settingsShown);
on("sheet", "input", settingsTaken);
on("reset", "click", () => {
  for (const field of settingFields()) field.value = store.USUAL[current.kind][field.name];
  settingsTaken();
});
on("unlock-not", "click", () => $("lock").close());
on("lock", "submit", (event) => {
  event.preventDefault();
  keyGiven();
});
on("models", "change", () => {
  store.keep("model", $("models").value);
  start();
});
on("theme", "click", () => {
  const names = Object.keys(THEMES);
  themed(names[(names.indexOf(store.kept("theme") ?? "") + 1) % names.length]);
});
on("latest", "click", () => {
  follow = true;
  scrollTo(0, document.documentElement.scrollHeight);
  progress();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("drawn")) $("close").click();
  else stop();
});
document.addEventListener("scroll", () => {
  const { scrollHeight } = document.documentElement;
  follow = innerHeight + scrollY > scrollHeight - 60;
  $("latest").hidden = follow;
});
addEventListener("storage", list); // another tab has changed something
addEventListener("pagehide", () => {
  for (const { conversation, turn } of jobs.values()) {
    turn.end = "left";
    store.save(conversation);
  }
});
setInterval(progress, 500);
setInterval(wonder, 2000);

themed(store.kept("theme") ?? "");
current = store.all()[0] ?? current;
list();
draw();
start();
toMessage();
