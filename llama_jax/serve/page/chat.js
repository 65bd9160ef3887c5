// The page: conversations with the model that this server has, and the answers that are written.
import { add, counts, failed, requestOf, take } from "./answer.js";
import { Failure, events, models, unready } from "./api.js";
import { askKey, key, showSettings } from "./dialogs.js";
import { button, make, reader, say } from "./dom.js";
import { drawer, followWords, toLatest, toMessage } from "./frame.js";
import * as store from "./store.js";
import { conversationView, failureView, grow, sends, waitOf } from "./view.js";

const $ = (id) => document.getElementById(id);
const deleted = new Set(); // conversations whose answer may end after them
const jobs = new Map(); // answers that are being written, by the conversation's id
let served = []; // what /v1/models has
let model = null;
let current = store.fresh("chat");
let view = null;

// ---- answers

async function answer(conversation) {
  const turn = { role: "assistant", content: "" };
  const job = { conversation, turn, abort: new AbortController(), began: performance.now(), heard: performance.now(), pieces: 0 };
  const read = reader();
  conversation.turns.push(turn);
  jobs.set(conversation.id, job);
  changed(conversation);
  toLatest();
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
    if (error.status === 401) askKey(whyKey(error), () => current === conversation && retry(conversation.turns.indexOf(turn)));
  }
  if (jobs.get(conversation.id) === job) jobs.delete(conversation.id); // else it was retried
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
    followWords();
  });
  if (performance.now() - (job.stored ?? 0) < 1000) return;
  job.stored = performance.now();
  if (!deleted.has(conversation)) store.save(conversation);
}

const does = {
  writing: (turn) => jobs.get(current.id)?.turn === turn,
  refresh() {
    draw();
    toMessage();
  },
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
  progress();
  followWords();
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
  drawer(false);
  draw();
  toLatest();
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

// ---- model and key

async function load() {
  served = await models(key());
  model = served.find((one) => one.id === store.kept("model")) ?? served[0];
  if (!model) throw new Failure("This server has no model.", "See how it was started.");
  $("model").textContent = model.id;
  $("model").className = served.length > 1 ? "unseen" : "";
  $("models").hidden = served.length < 2;
  $("models").replaceChildren(...served.map(({ id }) => make("option", { value: id, selected: id === model.id }, id)));
  document.title = `${model.id} – llama-jax`;
  notice(null);
  if (current.turns.length === 0) current = store.fresh(kind());
}

const kind = () => (model && !model.chat ? "text" : "chat");

const whyKey = ({ advice }) => (key() ? `The server does not take the key that this page has. ${advice}` : advice);

async function start() {
  try {
    await load();
  } catch (error) {
    if (error.status === 401) askKey(whyKey(error), start);
    else notice(error, button("Retry", start));
  }
  draw();
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
on("keys", "click", () => askKey("Needed only where the server was started with keys. An empty one forgets it.", start));
on("settings", "click", () => showSettings(current, (one) => one.turns.length > 0 && store.save(one)));
on("models", "change", () => {
  store.keep("model", $("models").value);
  start();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!drawer(false)) stop();
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

current = store.all()[0] ?? current;
list();
draw();
start();
toMessage();
