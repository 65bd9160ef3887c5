// The list of conversations, and files of them.
import { button, make } from "./dom.js";
import { all, fromFile, save, titleOf, toFile } from "./store.js";

/** Lists what is kept. `does.choose` and `does.discard` take a conversation, `does.written` its id. */
export function showList(current, does) {
  const items = all().map((conversation) => {
    const title = titleOf(conversation);
    const open = button(title, () => does.choose(conversation), { class: "open" });
    if (conversation.id === current.id) open.setAttribute("aria-current", "true");
    if (does.written(conversation.id)) {
      open.prepend(make("span", { class: "dot" }, make("span", { class: "unseen" }, "Being written: ")));
    }
    const named = { class: "forget", title: "Delete", "aria-label": `Delete “${title}”` };
    return make("li", {}, open, button("", () => does.discard(conversation), named));
  });
  document.getElementById("list").replaceChildren(...items);
  document.getElementById("export").disabled = items.length === 0;
}

/** Has the browser save all conversations as a file. */
export function exportAll() {
  const url = URL.createObjectURL(new Blob([toFile(all())], { type: "application/json" }));
  const day = new Date().toISOString().slice(0, 10);
  make("a", { href: url, download: `conversations-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Keeps the conversations of the file that `input` has, and gives them. */
export async function importFrom(input) {
  const [file] = input.files;
  input.value = ""; // the same file can be chosen again
  const found = file ? fromFile(await file.text()) : [];
  for (const conversation of found) save(conversation);
  return found;
}
