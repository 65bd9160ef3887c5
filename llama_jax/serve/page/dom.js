// Elements made of text nodes only, the clipboard, and what a screen reader is told.

/** An element. `on...` properties are listeners, others attributes; children are nodes or text.
 *
 * Attributes come last: under `dir=auto` Chromium reads the whole text again for each new child. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

export function button(label, onclick, more = {}) {
  return make("button", { type: "button", onclick, ...more }, label);
}

/** Puts text into the clipboard; the old way where a page on plain HTTP has no clipboard. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { class: "unseen", readonly: true });
    const before = document.activeElement;
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    if (!done) throw new Error("The browser did not copy it; select the text and copy it.");
  }
}

/** A button that copies what `text()` gives, and says that it has. */
export function copyButton(text, label = "Copy", more = {}) {
  const made = button(label, async () => {
    try {
      await copy(text());
      say("Copied.");
      made.textContent = "Copied";
    } catch (error) {
      say(error.message);
      made.textContent = "Not copied";
    }
    setTimeout(() => (made.textContent = label), 1600);
  }, more);
  return made;
}

/** Has a screen reader say something, after what it says now. */
export function say(text) {
  const log = document.getElementById("voice");
  log.append(make("p", {}, text));
  while (log.children.length > 8) log.firstChild.remove();
}

/** Reads a growing text aloud by whole sentences: returns `read(text, last)`. */
export function reader() {
  let told = 0;
  return (text, last) => {
    const rest = text.slice(told);
    const ends = [...rest.matchAll(/[.!?…:]["”’)]*\s|\n/g)].at(-1);
    const length = last ? rest.length : ends ? ends.index + ends[0].length : 0;
    const part = rest.slice(0, length).replace(/[*_`#>~]+/g, "").trim();
    told += length;
    if (part) say(part);
  };
}
