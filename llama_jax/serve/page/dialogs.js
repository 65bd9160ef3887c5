// The two dialogs: a conversation's settings, and the server's key.
import { USUAL, chosen, keep, kept } from "./store.js";

const $ = (id) => document.getElementById(id);
const fields = () => [...$("sheet").querySelectorAll("[name]")];
let shown = null; // the conversation whose settings are shown, and what to call when they change
let unlocked = null; // what to do once there is a key

export function showSettings(conversation, changed) {
  shown = { conversation, changed };
  const text = conversation.kind === "text";
  for (const field of fields()) field.value = conversation.settings[field.name];
  $("system-field").hidden = text;
  $("sheet").querySelector("[name=max_tokens]").placeholder = text ? "16" : "to its end";
  $("api").querySelector("code").textContent = new URL("v1", location.href).href;
  $("sheet").showModal();
}

/** Takes each field that is in order; the form does not close over one that is not. */
function take() {
  const { conversation, changed } = shown;
  for (const field of fields()) if (field.checkValidity()) conversation.settings[field.name] = field.value;
  chosen(conversation);
  changed(conversation);
}

/** The key to send, or "". A tab's own comes before the browser's. */
export const key = () => kept("key", "sessionStorage") || kept("key") || "";

/** Asks for a key, and then does `then`. */
export function askKey(why, then) {
  unlocked = then;
  $("lock-why").textContent = why;
  if (!$("lock").open) $("lock").showModal();
}

function given(event) {
  event.preventDefault();
  const { key: field, remember } = event.target.elements;
  const value = field.value.trim() || null;
  keep("key", value, "sessionStorage");
  keep("key", remember.checked ? value : null);
  field.value = "";
  $("lock").close();
  unlocked();
}

$("sheet").addEventListener("input", take);
$("reset").addEventListener("click", () => {
  for (const field of fields()) field.value = USUAL[shown.conversation.kind][field.name];
  take();
});
$("lock").addEventListener("submit", given);
$("unlock-not").addEventListener("click", () => $("lock").close());
