"use strict";
const page = JSON.parse(document.getElementById("page").textContent);
const texts = page.texts;
const ROWS_SHOWN = 100;  // of a table that is not scrolled through
const SVG = "http://www.w3.org/2000/svg";

// Strings given to append() become text, never markup.
function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value === null) return "";
  if (typeof value !== "number") return value;
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) < 0.001 ? value.toPrecision(3) : value.toFixed(4);
}

// What a cell says, as text.
function say(value, kind) {
  if (value === null) return "";
  if (kind === "rank") return String(value);
  if (kind === "percent") return `${(100 * value).toFixed(1)} %`;
  if (kind === "number") return value && Math.abs(value) < 0.001 ? value.toPrecision(3) : value.toFixed(4);
  if (kind === "player") return page.players[value][0];
  if (kind === "interval") return `${number(value[0])} [${number(value[1])}, ${number(value[2])}]`;
  return String(plain(value));
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function tiles(part) {
  const list = element("dl", { class: "tiles" });
  for (const [label, value, detail] of part.tiles) {
    const figure = element("div", {}, element("dt", {}, label), element("dd", {}, number(value)));
    if (detail) figure.append(element("dd", { class: "detail" }, detail));
    list.append(figure);
  }
  return [list];
}

function facts(part) {
  return Object.entries(part.facts).map(([title, rows]) => {
    const table = element("table", { class: "facts" }, element("caption", {}, title));
    for (const [label, value] of Object.entries(rows))
      table.append(element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, String(value))));
    return element("div", { class: "scroll whole", tabindex: 0, role: "region", "aria-label": title }, table);
  });
}
