const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const touch = matchMedia("(pointer: coarse)");
const plots = [...document.querySelectorAll(".plot")];

function theme() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  return {
    "font.color": color("--text"),
    "hoverlabel.bgcolor": color("--page"),
    "hoverlabel.bordercolor": color("--line"),
    "hoverlabel.font.color": color("--text"),
  };
}

function showNode(id) {
  const row = [...document.querySelectorAll("#nodes tr[data-node]")].find((row) => row.dataset.node === id);
  if (!row) return;
  document.querySelectorAll("tr.found").forEach((other) => other.classList.remove("found"));
  row.classList.add("found");
  row.scrollIntoView({ block: "center" });
}

async function draw(plot) {
  const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
  // A finger that moves over a picture scrolls the page.
  if (touch.matches || narrow.matches) figure.layout.dragmode = false;
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  await Plotly.newPlot(plot, figure.data, figure.layout, config);
  await Plotly.relayout(plot, theme());
  plot.on("plotly_click", (event) => event.points[0].customdata && showNode(event.points[0].customdata));
  const controls = figure.layout.meta?.controls ?? [];
  plot.parentElement.querySelectorAll("select").forEach((select, index) => {
    select.addEventListener("change", async () => {
      const option = controls[index].options[select.selectedIndex];
      for (const [update, traces] of option.updates) await Plotly.restyle(plot, update, traces);
      if (option.layout) await Plotly.relayout(plot, option.layout);
    });
  });
  plot.parentElement.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", visible);
      const traces = figure.data.flatMap((trace, index) => (trace.legendgroup === button.dataset.group ? [index] : []));
      Plotly.restyle(plot, { visible }, traces);
    });
  });
}

function key(row, column) {
  const cell = row.cells[column];
  return { text: cell.dataset.sort ?? cell.textContent.trim(), number: cell.classList.contains("numeric") };
}

function sortBy(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const down = header.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [key(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
    const order = a.number ? a.text - b.text : a.text.localeCompare(b.text, undefined, { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

async function copy(button) {
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages opened from a file may lack the clipboard: the selection is copied instead.
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sortBy(button.parentElement)));
document.querySelectorAll(".copy button").forEach((button) => button.addEventListener("click", () => copy(button)));
dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, theme())));
Promise.all(plots.map(draw)).then(() => (document.body.dataset.ready = "true"));
