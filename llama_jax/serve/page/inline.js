// Markdown within a line: `code`, **bold**, *italics*; an escaped mark is itself. Links stay text.
import { make } from "./dom.js";

/** The nodes of a line's text. */
export function inline(text) {
  const nodes = document.createDocumentFragment();
  const marks = /\\([!-/:-@[-`{-~])|`+|\*{1,3}|_{1,3}/g;
  const never = new Set(); // marks known not to close in this text, so that each is sought once
  let plain = 0;
  for (let found; (found = marks.exec(text)); ) {
    const mark = found[1] ? "" : found[0];
    const from = found.index + found[0].length;
    if (mark && (never.has(mark) || !opens(text, mark, found.index))) continue;
    const end = mark ? closing(text, mark, from) : from;
    if (end < 0) {
      never.add(mark);
      continue;
    }
    nodes.append(text.slice(plain, found.index));
    if (!mark) nodes.append(found[1]);
    else nodes.append(marked(mark, text.slice(from, end)));
    plain = marks.lastIndex = end + mark.length;
  }
  nodes.append(text.slice(plain));
  return nodes;
}

function marked(mark, inner) {
  if (mark[0] === "`") return make("code", {}, inner.replace(/^ (.*\S.*) $/s, "$1"));
  if (mark.length === 3) return make("strong", {}, make("em", {}, inline(inner)));
  return make(mark.length === 2 ? "strong" : "em", {}, inline(inner));
}

const isWord = (letter) => /\w/.test(letter ?? "");

/** Whether a mark may open something: a star before a space does not, nor _ within a_name. */
function opens(text, mark, index) {
  if (mark[0] === "`") return true;
  return /\S/.test(text[index + mark.length] ?? " ") && !(mark[0] === "_" && isWord(text[index - 1]));
}

/** Where a mark closes after `from`, or -1. Marks that close together do so from the inside out. */
function closing(text, mark, from) {
  const [sign, size] = [mark[0], mark.length];
  for (let at = text.indexOf(sign, from), end; at >= 0; at = text.indexOf(sign, end)) {
    for (end = at; text[end] === sign; ) end += 1;
    const run = end - at;
    if (sign === "`" ? run === size : fits(run, size) && /\S/.test(text[at - 1]) && !(sign === "_" && isWord(text[end]))) {
      return end - size;
    }
  }
  return -1;
}

const fits = (run, size) => (size === 1 ? run % 2 === 1 : run >= size);
