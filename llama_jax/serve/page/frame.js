// What surrounds a conversation: colours, the drawer of a narrow page, scrolling with the words.
import { keep, kept } from "./store.js";

const $ = (id) => document.getElementById(id);
const THEMES = { "": "as the system", light: "light", dark: "dark" };
let following = true;

function themed(theme) {
  const known = theme in THEMES ? theme : "";
  if (known) document.documentElement.dataset.theme = known;
  else delete document.documentElement.dataset.theme;
  $("theme").title = `Colours: ${THEMES[known]}`;
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[known]}. Change`);
  keep("theme", known || null);
}

/** Opens or closes the drawer. On a wide page it is always there. */
export function drawer(open) {
  const was = document.body.classList.contains("drawn");
  document.body.classList.toggle("drawn", open);
  $("page").inert = open;
  $("drawer").setAttribute("role", open ? "dialog" : "navigation");
  $("drawer").setAttribute("aria-modal", String(open));
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("close").focus();
  else if (was) $("menu").focus();
  return was;
}

/** Scrolls to the last words where the reader has not scrolled away from them. */
export function followWords() {
  if (following) scrollTo(0, document.documentElement.scrollHeight);
  $("latest").hidden = following;
}

export function toLatest() {
  following = true;
  followWords();
}

/** Where there is a keyboard; elsewhere it would cover the page with one. */
export function toMessage() {
  if (matchMedia("(pointer: fine)").matches) $("message").focus();
}

themed(kept("theme") ?? "");
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  themed(names[(names.indexOf(kept("theme") ?? "") + 1) % names.length]);
});
$("menu").addEventListener("click", () => drawer(true));
$("close").addEventListener("click", () => drawer(false));
$("latest").addEventListener("click", toLatest);
document.addEventListener("pointerdown", ({ target }) => {
  if ($("page").inert && !$("drawer").contains(target)) drawer(false);
});
document.addEventListener("scroll", () => {
  following = innerHeight + scrollY > document.documentElement.scrollHeight - 60;
  $("latest").hidden = following;
});
