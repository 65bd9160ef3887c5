// A small Markdown: fences, headings, lists, quotes, tables, rules and paragraphs. It makes text
// nodes and elements, never HTML from text.
import { copyButton, make } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DEEPEST = 6; // lists in lists and quotes in quotes beyond it are paragraphs

/** Shows `text` in `parent`. Blocks that have not changed since the last call keep their elements. */
export function show(parent, text) {
  const blocks = blocksOf(text.split("\n"), 0);
  let last = 2; // the page has an h1, and each turn an h2
  for (const block of blocks) if (block.kind === "heading") last = block.shown = Math.min(block.level + 2, last + 1);
  blocks.forEach((block, i) => {
    const old = parent.children[i];
    const key = JSON.stringify(block);
    if (old?.key === key) return;
    if (old?.block?.kind === "code" && block.kind === "code" && old.block.language === block.language) {
      old.querySelector("code").textContent = block.text;
      old.block = block;
      old.key = key;
      return;
    }
    const made = Object.assign(elementOf(block), { key, block });
    if (old) old.replaceWith(made);
    else parent.append(made);
  });
  while (parent.children.length > blocks.length) parent.lastChild.remove();
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const found = starts(line, depth);
    if (!line.trim()) at += 1;
    else if (found?.kind === "fence") at = fence(lines, at, found.match, blocks);
    else if (found?.kind === "heading") {
      blocks.push({ kind: "heading", level: found.match[1].length, text: found.match[2] });
      at += 1;
    } else if (found?.kind === "rule") {
      blocks.push({ kind: "rule" });
      at += 1;
    } else if (found?.kind === "quote") {
      const from = at;
      while (at < lines.length && QUOTE.test(lines[at])) at += 1;
      const inner = lines.slice(from, at).map((quoted) => QUOTE.exec(quoted)[1]);
      blocks.push({ kind: "quote", blocks: blocksOf(inner, depth + 1) });
    } else if (found?.kind === "list") at = list(lines, at, depth, blocks);
    else if (isTable(lines, at)) at = table(lines, at, blocks);
    else {
      const from = at;
      do at += 1;
      while (at < lines.length && lines[at].trim() && !starts(lines[at], depth) && !isTable(lines, at));
      blocks.push({ kind: "paragraph", text: lines.slice(from, at).join("\n") });
    }
  }
  return blocks;
}

function starts(line, depth) {
  const kinds = { fence: FENCE, heading: HEADING, rule: RULE };
  if (depth < DEEPEST) Object.assign(kinds, { quote: QUOTE, list: ITEM });
  for (const [kind, pattern] of Object.entries(kinds)) {
    const match = pattern.exec(line);
    if (match) return { kind, match };
  }
  return null;
}

/** A fence that does not close yet goes to the end: it is still being written. */
function fence(lines, at, [, mark, words], blocks) {
  const language = words.trim().split(/\s/, 1)[0];
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (end < lines.length && !closes(lines[end])) end += 1;
  blocks.push({ kind: "code", language, text: lines.slice(at + 1, end).join("\n") });
  return end + 1;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

/** Whether a table begins here: a line of names over one of as many dashes. */
function isTable(lines, at) {
  const under = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !/^[\s|:-]+$/.test(under)) return false;
  const dashes = cells(under);
  return dashes.every((cell) => /^:?-+:?$/.test(cell)) && dashes.length === cells(lines[at]).length;
}

function table(lines, at, blocks) {
  const names = cells(lines[at]);
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) {
    rows.push(cells(lines[at]).slice(0, names.length));
  }
  blocks.push({ kind: "table", names, rows });
  return at;
}

function list(lines, at, depth, blocks) {
  const [, indent, first] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first);
  const items = [];
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered || RULE.test(lines[at])) break;
    const width = item[1].length + item[2].length + Math.min(item[3].length || 1, 4);
    const inside = (line) => line.search(/\S/) > item[1].length && line.search(/\S/) >= Math.min(width, item[1].length + 2);
    const inner = [item[4]];
    for (at += 1; at < lines.length; at += 1) {
      const blank = !lines[at].trim();
      if (blank && !(at + 1 < lines.length && inside(lines[at + 1]))) break;
      if (!blank && !inside(lines[at]) && (starts(lines[at], depth) || !lines[at - 1].trim())) break;
      inner.push(lines[at].replace(new RegExp(`^ {0,${width}}`), ""));
    }
    items.push(blocksOf(inner, depth + 1));
    let next = at;
    while (next < lines.length && !lines[next].trim()) next += 1;
    if (next < lines.length && ITEM.test(lines[next])) at = next;
  }
  blocks.push({ kind: "list", ordered, start: parseInt(first, 10) || 1, items });
  return at;
}

function elementOf(block) {
  switch (block.kind) {
    case "code":
      return codeElement(block);
    case "heading":
      if (!block.shown) return make("p", { dir: "auto" }, make("strong", {}, inline(block.text))); // in a list, say
      return make(`h${Math.min(block.shown, 6)}`, { dir: "auto" }, inline(block.text));
    case "rule":
      return make("hr");
    case "table":
      return tableElement(block);
    case "quote":
      return make("blockquote", {}, ...block.blocks.map(elementOf));
    case "list": {
      const start = block.ordered && block.start !== 1 && block.start;
      return make(block.ordered ? "ol" : "ul", { start }, ...block.items.map(itemElement));
    }
    default:
      return make("p", { dir: "auto" }, inline(block.text));
  }
}

function tableElement({ names, rows }) {
  const head = names.map((name) => make("th", { scope: "col", dir: "auto" }, inline(name)));
  const row = (texts) => make("tr", {}, ...texts.map((text) => make("td", { dir: "auto" }, inline(text))));
  const body = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.map(row)));
  return make("div", { class: "table", role: "region", "aria-label": "Table", tabindex: "0" }, body);
}

function itemElement(blocks) {
  const tight = blocks.length > 0 && blocks[0].kind === "paragraph";
  if (!tight) return make("li", { dir: "auto" }, ...blocks.map(elementOf));
  return make("li", { dir: "auto" }, inline(blocks[0].text), ...blocks.slice(1).map(elementOf));
}

function codeElement({ language, text }) {
  const name = language || "code";
  const code = make("code", {}, text);
  const copying = copyButton(() => code.textContent, "Copy", { "aria-label": `Copy this ${name}` });
  const caption = make("figcaption", {}, make("span", {}, name), copying);
  return make("figure", { class: "code" }, caption, make("pre", { tabindex: "0" }, code));
}
