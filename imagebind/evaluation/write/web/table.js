// Tables

// A bar for each window, from its start to that of the next; they share a scale over all pairs.
function timeLine([weakest, windows], [low, high]) {
  const width = 140, height = 28, last = windows.at(-1), label = windows.map(sayWindow);
  const drawing = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "time", role: "img", "aria-label": label.join("; ") });
  windows.forEach(([start, end, score, isSilent], i) => {
    const next = i + 1 < windows.length ? windows[i + 1][0] : end, scale = width / last[1];
    const tall = 3 + (height - 4) * (score - low) / (high - low || 1);
    const place = { x: start * scale + .5, y: height - tall, width: Math.max((next - start) * scale - 1, 1), height: tall };
    for (const name in place) place[name] = place[name].toFixed(2);
    const kind = (score === weakest ? "weakest" : "window") + (isSilent ? " silent" : "");
    drawing.append(draw("rect", { ...place, class: kind }, draw("title", {}, label[i])));
  });
  return drawing;
}

function intervalBar(value, [low, high]) {
  const at = x => (4 + 152 * (x - low) / (high - low || 1)).toFixed(1);
  return draw("svg", { viewBox: "0 0 160 20", class: "interval", role: "img", "aria-label": say(value, "interval") },
    draw("title", {}, say(value, "interval")),
    draw("line", { x1: at(value[1]), x2: at(value[2]), y1: 10, y2: 10 }), draw("circle", { cx: at(value[0]), cy: 10, r: 5 }));
}

function cell(value, kind, scale) {
  if (value === null) return element("td", { class: kind });
  if (kind === "thumbnails") {
    const alts = [texts.frames, texts.spectrogram];
    return element("td", { class: kind }, element("div", {}, ...value.flatMap((picture, i) =>
      picture ? [element("img", { src: `data:image/jpeg;base64,${picture}`, alt: alts[i] })] : [])));
  }
  if (kind === "interval") return element("td", {}, intervalBar(value, scale));
  if (kind === "file" || kind === "player") {
    if (kind === "player") return element("td", { title: page.players[value][0] }, linkTo(page.players[value]));
    return element("td", { title: value[0] }, value[1] ? element("a", { href: value[1] }, value[0]) : value[0]);
  }
  return element("td", { class: kind, title: say(value, kind) }, say(value, kind));
}

function sortedBy(value, kind) {
  return kind === "player" && value !== null ? page.players[value][0] : plain(value);
}

function plain(value) {
  return Array.isArray(value) ? value[0] : value;
}

// null goes last in either direction; what is equal keeps its order.
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

// Lowest and highest of what the drawings of a column show.
function scaleOf(rows, i, kind) {
  if (kind !== "windows" && kind !== "interval") return null;
  const values = rows.flatMap(row => row[i] === null ? [] : kind === "windows" ? row[i][1].map(of => of[2]) : row[i]);
  return values.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
}

const WIDTHS = { text: 14, long: 24, file: 14, player: 14, thumbnails: 20, windows: 10.5, interval: 12 };  // rem

// A table that is searched and sorted; a long one holds the rows alone that are in sight, and a row of a pair opens.
function table(part) {
  const { columns, details } = part, isLong = part.rows.length > ROWS_SHOWN || details;
  const scales = columns.map(([, kind], i) => scaleOf(part.rows, i, kind));
  const searchedTexts = () => part.rows.map(row => row.map((value, i) =>
    columns[i][1] === "thumbnails" || value === null ? "" : say(value, columns[i][1])).join("\n").toLowerCase());
  const isNarrow = innerWidth < 600;
  const hasThumbnails = columns.some(([, kind]) => kind === "thumbnails");
  const height = hasThumbnails ? 96 : 40;
  const body = element("tbody", {}), place = element("span", { role: "status" });
  const filter = element("input", { type: "search", placeholder: texts.filter, "aria-label": `${texts.filter}: ${part.title}` });
  const onlySuspects = element("input", { type: "checkbox" });
  const spaces = [0, 1].map(() => element("tr", { class: "space", "aria-hidden": "true" }, element("td", { colspan: columns.length })));
  let [sorted, direction] = [null, 1], rows = [], shown = new Map(), searched = null;
  const open = new Map();  // row -> what is shown below it, and how tall that is

  function rowOf(i) {
    const row = part.rows[i];
    const cells = row.map((value, k) => {
      if (columns[k][1] !== "windows" || value === null) return cell(value, columns[k][1], scales[k]);
      const button = element("button", { type: "button", class: "time", title: texts["jump to weakest"] }, timeLine(value, scales[k]));
      button.addEventListener("click", () => {
        setOpen(i, true);
        jump(open.get(i).picture, value[1].find(of => of[2] === value[0])[0]);
      });
      return element("td", {}, button);
    });
    const node = element("tr", { class: "row" }, ...cells);
    if (isLong) node.style.height = `${height}px`;
    if (details) {
      const button = element("button", { type: "button", class: "open", "aria-expanded": "false", title: row[0] }, String(row[0]));
      button.addEventListener("click", () => setOpen(i, !open.has(i)));
      cells[0].replaceChildren(button);
    }
    return node;
  }

  function setOpen(i, isOpen) {
    if (isOpen === open.has(i)) return;
    if (isOpen) {
      const [content, picture] = openedPair(part, part.rows[i], details[i]);
      const node = element("tr", { class: "detail" }, element("td", { colspan: columns.length }, content));
      open.set(i, { node, picture, height: 0 });
      new ResizeObserver(() => {
        if (node.isConnected) open.get(i) && (open.get(i).height = node.offsetHeight, show());
      }).observe(content);
    } else {
      open.get(i).node.remove();
      open.delete(i);
    }
    show();
    if (isOpen && open.get(i).node.isConnected) {
      open.get(i).height = open.get(i).node.offsetHeight;
      show();
    }
  }

  function show() {
    let first = 0, last = rows.length, above = 0, below = 0;
    if (isLong) {
      const top = box.scrollTop - 10 * height, end = box.scrollTop + box.clientHeight + 10 * height;
      let y = 0;
      first = last = null;
      for (let k = 0; k < rows.length; k++) {
        const next = y + height + (open.get(rows[k])?.height || 0);
        if (first === null && next > top) [first, above] = [k, y];
        if (first !== null && last === null && y > end) [last, below] = [k, y];
        y = next;
      }
      [first, last, below] = [first ?? rows.length, last ?? rows.length, last === null ? 0 : y - below];
    }
    const wanted = new Set(rows.slice(first, last));
    for (const [i, node] of shown)
      if (!wanted.has(i)) {
        node.remove();
        open.get(i)?.node.remove();
        shown.delete(i);
      }
    let cursor = spaces[0].nextSibling;
    const put = node => {
      if (node === cursor) cursor = cursor.nextSibling; else body.insertBefore(node, cursor);
    };
    let k = first;
    for (const i of wanted) {
      if (!shown.has(i)) shown.set(i, rowOf(i));
      const node = shown.get(i);
      node.setAttribute("aria-rowindex", ++k + 1);
      node.classList.toggle("opened", open.has(i));
      node.querySelector("button.open")?.setAttribute("aria-expanded", open.has(i));
      put(node);
      if (open.has(i)) put(open.get(i).node);
    }
    spaces[0].firstChild.style.height = `${above}px`;
    spaces[1].firstChild.style.height = `${below}px`;
  }

  function choose() {
    const wanted = filter.value.toLowerCase();
    if (wanted) searched ??= searchedTexts();  // not before it is asked for: of many rows it takes a while
    rows = part.rows.map((_, i) => i).filter(i => (!wanted || searched[i].includes(wanted)) &&
      (!onlySuspects.checked || part.rows[i][part.suspect] === texts.yes));
    if (sorted !== null)
      rows.sort((i, k) => compare(...[i, k].map(n => sortedBy(part.rows[n][sorted], columns[sorted][1])), direction));
    heads.forEach((head, i) => {
      if (!head.firstElementChild) return;
      head.setAttribute("aria-sort", i !== sorted ? "none" : direction > 0 ? "ascending" : "descending");
      head.querySelector("span").textContent = i !== sorted ? "" : direction > 0 ? " ▲" : " ▼";
    });
    for (const { node } of open.values()) node.remove();
    shown = new Map();
    body.replaceChildren(...spaces);
    box.scrollTop = 0;
    whole.setAttribute("aria-rowcount", rows.length + 1);
    place.textContent = rows.length ? fill(texts.rows, { n: rows.length, all: part.rows.length }) : texts.nothing;
    show();
  }

  const heads = columns.map(([label, kind], i) => {
    if (kind === "thumbnails") return element("th", { scope: "col", class: kind }, label);
    const button = element("button", { type: "button" }, label, element("span", { "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      [sorted, direction] = [i, i === sorted ? -direction : 1];
      choose();
    });
    return element("th", { scope: "col", class: kind }, button);
  });
  const whole = element("table", { class: isLong ? "fixed" : "" }, element("thead", {}, element("tr", {}, ...heads)), body);
  const box = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": part.title || texts.table }, whole);
  if (isLong) {
    const widths = columns.map(([label, kind]) =>
      (WIDTHS[kind] || Math.max(5.5, .55 * label.length + 2.5)) * (isNarrow && kind === "text" ? .6 : 1));
    whole.prepend(element("colgroup", {}, ...widths.map(width => element("col", { style: `width: ${width}rem` }))));
    whole.style.width = `${widths.reduce((a, b) => a + b)}rem`;
    box.addEventListener("scroll", show, { passive: true });
    new ResizeObserver(show).observe(box);
  }
  filter.addEventListener("input", choose);
  onlySuspects.addEventListener("change", choose);
  part.openRow = i => {
    [filter.value, onlySuspects.checked] = ["", false];
    choose();
    const place = () => {
      const above = [...open].filter(([k]) => rows.indexOf(k) < rows.indexOf(i));
      box.scrollTop = rows.indexOf(i) * height + above.reduce((sum, [, of]) => sum + of.height, 0);
      show();
    };
    place();
    setOpen(i, true);
    place();
    box.scrollIntoView({ block: "start" });
    shown.get(i)?.querySelector("button.open").focus({ preventScroll: true });
  };
  part.say = text => { place.textContent = text; };
  choose();
  const controls = element("div", { class: "controls" }, filter);
  if (part.suspect !== null && part.suspect !== undefined)
    controls.append(element("label", {}, onlySuspects, " ", texts["suspects only"]));
  controls.append(place);
  return part.rows.length > 1 ? [controls, box] : [box];
}

// report.html#pair=NAME opens a pair, &n=2 the second of that name, &part=3&duel=1 that of a table of two systems.
function openLinkedPair() {
  const asked = {};
  for (const piece of location.hash.slice(1).split("&")) {
    const [key, text] = [piece.split("=")[0], piece.slice(piece.indexOf("=") + 1)];
    try { asked[key] = decodeURIComponent(text); } catch { asked[key] = text; }  // a % that encodes nothing
  }
  if (asked.pair === undefined) return;
  const chosen = page.parts[asked.part];
  if (chosen?.duels?.[asked.duel]) chosen.choose(asked.duel);
  const tables = (chosen ? [chosen] : page.parts).map(part => part.duels ? part.shown : part).filter(part => part.details);
  for (const part of tables) {
    const equal = part.rows.flatMap((row, i) => String(row[0]) === asked.pair ? [i] : []);
    if (equal.length) return part.openRow(equal[asked.n - 1] ?? equal[0]);
  }
  tables[0]?.say(`${texts.nothing}: ${asked.pair}`);
}
addEventListener("hashchange", openLinkedPair);
