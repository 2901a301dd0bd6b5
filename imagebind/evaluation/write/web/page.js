const charts = [];
const main = document.querySelector("main");
main.append(element("h1", {}, document.title));
if (page.note) main.append(element("p", { class: "note" }, page.note));
for (const part of page.parts) {
  const show = part.tiles ? tiles : part.chart ? drawChart : part.facts ? facts : part.duels ? duels : table;
  const section = element("section", {});
  if (part.title) section.append(element("h2", {}, part.title));
  if (part.how) section.append(element("p", { class: "how" }, part.how));
  section.append(...show(part));
  main.append(section);
}
function drawCharts() {
  for (const [chart, spec] of charts) plot(chart, spec);
}
openLinkedPair();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [chart] of charts) Plotly.relayout(chart, { template: template() });
});
