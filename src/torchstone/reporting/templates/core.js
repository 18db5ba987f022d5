// Results, and what all charts share: colours, names, number formats, the layout.
const results = JSON.parse(document.getElementById("results").textContent);
const ranked = results.candidates.filter((candidate) => candidate.score !== null);
const byName = new Map(results.candidates.map((candidate) => [candidate.name, candidate]));
const state = { axis: results.main_axis, start: ranked.length ? firstStart() : null };
const charts = []; // functions that draw one chart each

const COLOURS = 12;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "hexagon", "pentagon",
  "triangle-left", "triangle-right"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (candidate) => css(`--c${candidate.colour % COLOURS}`);
const symbolIndex = (candidate) => (candidate.colour + Math.floor(candidate.colour / COLOURS)) % SYMBOLS.length;
const narrow = () => innerWidth <= 760;

function firstStart() {
  return ["scratch", "pretrained"].find((start) => ranked.some((candidate) => candidate.start === start));
}

// Plotly reads tags in text; names are shown as they are.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Long names keep their beginning and their end, which are what tells them apart.
function short(text, length) {
  if (text.length <= length) return text;
  const head = Math.ceil((length - 1) * 0.6);
  return `${text.slice(0, head)}…${text.slice(text.length - (length - 1 - head))}`;
}

const ruler = document.createElement("canvas").getContext("2d");
function textWidth(text, size) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function mark(candidate) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "-8 -8 16 16");
  svg.setAttribute("class", "mark");
  svg.setAttribute("aria-hidden", "true");
  svg.style.color = `var(--c${candidate.colour % COLOURS})`;
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#mark${symbolIndex(candidate)}`);
  svg.append(use);
  return svg;
}

function nameElements(candidate) {
  return [mark(candidate), element("span", { class: "name", title: candidate.name }, candidate.name)];
}

// Three significant digits without an exponent.
function digits(value) {
  if (value === 0 || Number.isInteger(value)) return String(value);
  return value.toFixed(Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))))));
}

function costText(axis, value, round = digits) {
  if (axis.unit === "s" && value >= 60) return `${round(value / 60)} min`;
  if (axis.unit && !axis.more_is_better) return `${round(value)} ${axis.unit}`;
  const [factor, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size) || [1, ""];
  return `${round(value / factor)} ${prefix}${axis.more_is_better ? "/s" : ""}`.trim();
}

const scale = results.fraction ? 100 : 1;
const scoreText = (value) => (results.fraction ? `${(100 * value).toFixed(1)} %` : digits(value));

// Round numbers in a range, as many as fit: steps of 1, 2 or 5; on a logarithmic axis the finest of some series.
function roundNumbers(low, high, log, most) {
  if (log) {
    const series = [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].map((factors) => {
      const powers = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) powers.push(power);
      return powers.flatMap((power) => factors.map((factor) => factor * 10 ** power)).filter((value) => value >= low && value <= high);
    });
    return series.find((values) => values.length <= most) ?? series.at(-1);
  }
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function layout(extra) {
  const family = getComputedStyle(document.body).fontFamily;
  const axis = (given = {}) => ({
    gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: false, fixedrange: matchMedia("(pointer: coarse)").matches,
    tickfont: { size: narrow() ? 11 : 12, color: css("--muted") }, ...given,
  });
  return {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", showlegend: false, hovermode: "closest",
    font: { family, size: 13, color: css("--ink") },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--muted"), font: { family, color: css("--ink"), size: 13 }, align: "left" },
    ...extra, xaxis: axis(extra.xaxis), yaxis: axis(extra.yaxis),
  };
}

function plot(id, traces, extra) {
  const box = document.getElementById(id);
  const size = { width: box.clientWidth, height: box.clientHeight };
  return Plotly.react(box, traces, layout({ ...size, ...extra }), { responsive: false, displayModeBar: false, doubleClick: "reset" });
}

const title = (text) => ({ text, standoff: 12, font: { size: 13, color: css("--muted") } });
const choice = (name) => one(`input[name="${name}"]:checked`)?.value;
const drawAll = () => charts.forEach((draw) => draw());

function start() {
  one("#theme").addEventListener("click", theme.toggle);
  for (const button of all(".copy")) button.addEventListener("click", () => copy(button));
  theme.onChange(drawAll);
  let wait;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar changes the height only
    width = innerWidth;
    clearTimeout(wait);
    wait = setTimeout(drawAll, 120);
  });
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  drawAll();
}

// Paper is light and has a width of its own, which the page learns too late to draw for.
function print(on) {
  document.documentElement.classList.toggle("paper", on);
  theme.print(on);
}

async function copy(button) {
  const code = one("code", button.parentElement);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch { // no clipboard for this page: leave the text selected
    getSelection().selectAllChildren(code);
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1800);
}
