// Charts take their colors from the page, and change with it.
function template() {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line, card] = ["--text", "--soft", "--line", "--card"].map(name => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    layout: {
      font: { color: text, family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: card, bordercolor: line, align: "left", font: { color: text, size: 13 } },
      margin: { l: 8, r: 8, t: 40, b: 8 }, dragmode: false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: text },
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 },
    },
  };
}

// The arrow keys move the pointer of a chart: over the cells of a heat map, the points of a trace.
function pointByKeys(chart) {
  const isMatrix = chart.data[0].type === "heatmap";
  const [rows, columns] = isMatrix
    ? [chart.data[0].meta.rows.length, chart.data[0].meta.columns.length]
    : chart.openPoint ? [1, chart.calcdata[0].length]
    : [chart.calcdata.length, Math.min(...chart.calcdata.map(points => points.length))];
  let row = 0, column = 0;
  chart.addEventListener("keydown", event => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    row = (row + down + rows) % rows;
    column = (column + right + columns) % columns;
    Plotly.Fx.hover(chart, isMatrix ? { xval: column, yval: row } : [{ curveNumber: row, pointNumber: column }]);
  });
  if (chart.openPoint) {
    chart.addEventListener("keydown", event => { if (event.key === "Enter") chart.openPoint(column); });
    chart.on("plotly_click", ({ points: [{ pointNumber }] }) => chart.openPoint(pointNumber));
  }
  if (chart.openCell) {
    chart.addEventListener("keydown", event => { if (event.key === "Enter") chart.openCell(row, column); });
    chart.on("plotly_click", ({ points: [{ x, y }] }) => chart.openCell(y, x));
  }
  chart.addEventListener("blur", () => Plotly.Fx.unhover(chart));
}

function drawChart(part) {
  const chart = element("div", { class: "chart", tabindex: 0, role: "group", "aria-label": `${part.title}. ${part.how}` });
  for (const trace of part.chart.data)
    if (trace.type === "heatmap")  // what the pointer says of a cell: the names of its row and its column
      trace.customdata = trace.meta.rows.map(row => trace.meta.columns.map(column => [row, column]));
  part.chart.layout.template = template();
  if (part.cells) part.chart.layout.height = Math.min(part.chart.layout.height, innerWidth + 80);
  chart.style.height = `${part.chart.layout.height}px`;
  charts.push([chart, part.chart]);
  if (part.cells) {
    chart.classList.add("matrix");
    const below = element("div", { role: "status" });
    chart.openCell = (row, column) => {
      const [player, picture] = pairPlayer(part.cells.video[column], part.cells.audio[row]);
      const names = `${part.cells.names[0][row]} – ${part.cells.names[1][column]}`;
      const said = element("p", {}, `${names}: ${say(chart.calcdata[0][0].z[row][column], "number")}`);
      below.replaceChildren(element("div", { class: "opened-pair" }, said, player));
      jump(picture, 0);
    };
    return [chart, below];
  }
  return [chart];
}

// Two systems pair by pair: a scatter of one against the other, and a table.
function duels(part) {
  const body = element("div", {}), choice = element("select", { "aria-label": texts["which two"] },
    ...part.duels.map(({ systems }, i) => element("option", { value: i }, systems.join(" − "))));
  function show() {
    const title = `${part.title}: ${part.duels[choice.value].systems.join(" − ")}`;
    const link = `&part=${page.parts.indexOf(part)}&duel=${choice.value}`;
    const duel = part.shown = { ...part.duels[choice.value], title, link };
    const [ours, theirs] = duel.systems, x = duel.rows.map(row => row[2]), y = duel.rows.map(row => row[1]);
    const ends = [...x, ...y].reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const chart = element("div", { class: "chart matrix", tabindex: 0, role: "group", "aria-label": duel.title });
    const color = getComputedStyle(document.documentElement).getPropertyValue("--link").trim();
    const points = { type: "scatter", mode: "markers", x, y, marker: { size: 7, color, opacity: .6 }, showlegend: false,
                     text: duel.rows.map(row => plotText(row[0])), hovertemplate: "%{text}<br>%{y:.4f} − %{x:.4f}<extra></extra>" };
    const line = { type: "scatter", mode: "lines", x: ends, y: ends, line: { dash: "dash", color: "#8a929c", width: 1 },
                   hoverinfo: "skip", showlegend: false };
    const axis = name => ({ title: { text: plotText(name) } });
    body.replaceChildren(chart, ...table(duel));
    const spec = { data: [points, line], layout: { height: 420, xaxis: axis(theirs), yaxis: { ...axis(ours), scaleanchor: "x" }, template: template() } };
    chart.style.height = "420px";
    chart.openPoint = i => { if (duel.details) duel.openRow(i); };
    const place = charts.findIndex(([, , of]) => of === part);
    charts.splice(place < 0 ? charts.length : place, place < 0 ? 0 : 1, [chart, spec, part]);
    if (main.contains(body) && window.Plotly) plot(chart, spec);
  }
  choice.addEventListener("change", show);
  part.choose = i => {
    if (choice.value === String(i)) return;
    choice.value = i;
    show();
  };
  show();
  return part.duels.length > 1 ? [element("div", { class: "controls" }, choice), body] : [body];
}

// Plotly takes some tags for markup.
function plotText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function plot(chart, { data, layout }) {
  Plotly.newPlot(chart, data, layout, {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  });
  pointByKeys(chart);
}
