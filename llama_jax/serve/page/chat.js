// The page: conversations with the model that this server has, and the answers that are written.
import { add, counts, failed, progressOf, requestOf, take } from "./answer.js";
import { Failure, events, models, unready } from "./api.js";
import { askKey, key, showSettings } from "./dialogs.js";
import { button, make, reader, say } from "./dom.js";
import { drawer, followWords, toLatest, toMessage } from "./frame.js";
import { exportAll, importFrom, showList } from "./shelf.js";
import * as store from "./store.js";
import { conversationView, failureView, grow, sends, waitOf, welcomeView } from "./view.js";

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
    const words = (text) => ($("message").value = text) && send();
    const welcome = () => [welcomeView(current.kind, model?.id ?? "the model", words)];
    $("turns").replaceChildren(...(current.turns.length > 0 ? view.nodes : welcome()));
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

const list = () => showList(current, { choose, discard, written: (id) => jobs.has(id) });

function choose(conversation) {
  current = jobs.get(conversation.id)?.conversation ?? conversation;
  drawer(false);
  draw();
  toLatest();
  list();
  toMessage();
}

/** Shows how far an answer is, and for how long one is to wait. */
function progress() {
  const job = jobs.get(current.id);
  $("progress").textContent = job ? progressOf(job) : "";
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

async function imported() {
  try {
    const found = await importFrom($("file"));
    notice(null);
    if (found.length > 0) choose(found[0]);
  } catch (error) {
    notice(new Failure("Nothing was imported.", error.message));
  }
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
on("export", "click", exportAll);
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
