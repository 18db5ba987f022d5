// Score against cost, with intervals and the front of the best scores for each budget.
if (state.axis) {
  charts.push(drawCost);
  one("#axis-choice").addEventListener("change", (event) => setAxis(event.target.value));
  one("#verdict-axis").addEventListener("change", (event) => setAxis(event.target.value));
  one("#start-choice")?.addEventListener("change", (event) => { state.start = event.target.value; drawCost(); });
}

function setAxis(key) {
  state.axis = key;
  one(`#axis-choice input[value="${key}"]`).checked = true;
  one("#verdict-axis").value = key;
  drawCost();
  showVerdicts();
}

const costOn = (candidate, key) => (key === "train_seconds" ? candidate.train_seconds : candidate.cost[key]) ?? null;

function drawCost() {
  const axis = results.axes.find((one) => one.key === state.axis);
  const group = ranked.filter((candidate) => candidate.start === state.start);
  const shown = group.filter((candidate) => costOn(candidate, axis.key) !== null);
  const missing = group.filter((candidate) => !shown.includes(candidate));
  const points = shown.map((candidate) => ({
    candidate, x: costOn(candidate, axis.key), y: scale * candidate.score, low: scale * candidate.low, high: scale * candidate.high,
    dominated: axis.key in candidate.dominated,
  }));
  one("#cost-legend").replaceChildren(...shown.map((candidate) => element("li", {}, ...nameElements(candidate))));
  note("#cost-note", [
    `${axis.more_is_better ? "Up and right" : "Up and left"} is better. Bars are intervals; hollow marks are dominated on this cost; `
      + "the dotted line joins the best scores at each cost.",
    missing.length ? `Not measured here: ${missing.map((candidate) => candidate.name).join(", ")}.` : "",
  ]);
  if (!points.length) { Plotly.purge("cost-chart"); return; }

  const box = one("#cost-chart");
  const margin = { l: 58, r: 18, t: 14, b: 52 };
  const area = { width: box.clientWidth - margin.l - margin.r, height: box.clientHeight - margin.t - margin.b };
  const xs = points.map((point) => point.x);
  const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 4;
  const toAxis = (value) => (log ? Math.log10(value) : value);
  const [xLow, xHigh] = padded(toAxis(Math.min(...xs)), toAxis(Math.max(...xs)), 0.1, log ? 0.1 : Math.min(...xs) * 0.1 || 1);
  const [yLow, yHigh] = padded(Math.min(...points.map((point) => point.low)), Math.max(...points.map((point) => point.high)), 0.07, 1);
  const pixel = (point) => ({
    x: ((toAxis(point.x) - xLow) / (xHigh - xLow)) * area.width,
    y: ((yHigh - point.y) / (yHigh - yLow)) * area.height,
    top: ((yHigh - point.high) / (yHigh - yLow)) * area.height,
    bottom: ((yHigh - point.low) / (yHigh - yLow)) * area.height,
  });
  const ends = log ? [10 ** xLow, 10 ** xHigh] : [xLow, xHigh];
  const ticks = roundNumbers(ends[0], ends[1], log, narrow() ? 4 : 9);

  const traces = points.map((point) => ({
    type: "scatter", mode: "markers", x: [point.x], y: [point.y],
    error_y: {
      type: "data", symmetric: false, array: [point.high - point.y], arrayminus: [point.y - point.low],
      color: colour(point.candidate), thickness: 1.5, width: 4,
    },
    marker: {
      color: colour(point.candidate), size: 12, line: { width: point.dominated ? 2 : 1, color: point.dominated ? colour(point.candidate) : css("--panel") },
      symbol: SYMBOLS[symbolIndex(point.candidate)] + (point.dominated ? "-open" : ""),
    },
    hovertemplate: [
      `<b>${plain(short(point.candidate.name, 44))}</b>`,
      `${plain(results.metric)}: ${scoreText(point.candidate.score)} (${digitsOfScale(point.low)}–${digitsOfScale(point.high)})`,
      `${plain(axis.label)}: ${costText(axis, point.x)}`,
      ...(point.dominated ? [wrapped(`dominated: ${point.candidate.dominated[axis.key]}`, 46)] : []),
    ].join("<br>") + "<extra></extra>",
  }));
  const front = frontOf(points, axis.more_is_better);
  traces.unshift({
    type: "scatter", mode: "lines", x: front.map((point) => point.x), y: front.map((point) => point.y), hoverinfo: "skip",
    line: { color: css("--front"), width: 1.5, dash: "dot", shape: axis.more_is_better ? "vh" : "hv" },
  });
  plot("cost-chart", traces, {
    margin,
    annotations: labels(
      points.map((point) => ({ ...pixel(point), name: point.candidate.name })), area, front.map(pixel),
      (a, b) => (axis.more_is_better ? [a.x, b.y] : [b.x, a.y]),
    ),
    xaxis: {
      type: log ? "log" : "linear", range: [xLow, xHigh], title: title(axis.label + (log ? " (logarithmic)" : "")), tickvals: ticks,
      ticktext: ticks.map((value) => costText(axis, value, (number) => String(Number(number.toPrecision(3))))),
    },
    yaxis: { range: [yLow, yHigh], ticksuffix: results.fraction ? " %" : "", nticks: 8 },
  });
}

const digitsOfScale = (value) => (results.fraction ? value.toFixed(1) : digits(value));

function padded(low, high, share, least) {
  const pad = high > low ? (high - low) * share : least;
  return [low - pad, high + pad];
}

// The candidates that no other beats on both axes, cheapest first.
function frontOf(points, moreIsBetter) {
  const order = [...points].sort((a, b) => (moreIsBetter ? b.x - a.x : a.x - b.x) || better(a, b));
  const front = [];
  for (const point of order) if (!front.length || better(point, front.at(-1)) < 0) front.push(point);
  return front.sort((a, b) => a.x - b.x);
}

const better = (a, b) => (results.maximize ? b.y - a.y : a.y - b.y);

function wrapped(text, length) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if ((lines.at(-1) + word).length > length && lines.at(-1)) lines.push("");
    lines.push(`${lines.pop()}${word} `);
  }
  return lines.map((line) => plain(line.trim())).join("<br>");
}

// Names beside the marks where there is room: the first of eight places that covers no mark and no other name.
function labels(points, area, front, corner) {
  const size = narrow() ? 11 : 12;
  const taken = points.map((point) => ({ left: point.x - 8, right: point.x + 8, top: point.y - 8, bottom: point.y + 8, weight: 100 }));
  points.forEach((point) => taken.push({ left: point.x - 3, right: point.x + 3, top: point.top, bottom: point.bottom, weight: 1 }));
  front.forEach((point, index) => { // the front's steps, unseen best
    const next = front[index + 1];
    if (!next) return;
    const [turnX, turnY] = corner(point, next);
    taken.push({ left: Math.min(point.x, next.x), right: Math.max(point.x, next.x), top: turnY - 3, bottom: turnY + 3, weight: 2 });
    taken.push({ left: turnX - 3, right: turnX + 3, top: Math.min(point.y, next.y), bottom: Math.max(point.y, next.y), weight: 1 });
  });
  const placed = [];
  for (const point of [...points].sort((a, b) => a.y - b.y)) {
    const text = short(point.name, narrow() ? 18 : 30);
    const width = textWidth(text, size) + 6;
    const height = size + 5;
    const places = [[1, 0], [-1, 0], [1, -1], [1, 1], [-1, -1], [-1, 1], [0, -1], [0, 1], [1, -2], [1, 2], [-1, -2], [-1, 2]].map(([side, row]) => {
      const left = side > 0 ? point.x + 11 : side < 0 ? point.x - 11 - width : point.x - width / 2;
      const top = point.y - height / 2 + row * (side ? 13 : 18);
      return { left, right: left + width, top, bottom: top + height, weight: 100 };
    });
    const costs = places.map((place) => {
      if (place.left < 0 || place.right > area.width || place.top < 0 || place.bottom > area.height) return Infinity;
      return taken.reduce((sum, other) => sum + (overlaps(place, other) ? other.weight : 0), 0);
    });
    const cheapest = Math.min(...costs);
    if (cheapest >= 100) continue;
    const place = places[costs.indexOf(cheapest)];
    taken.push(place);
    placed.push({
      xref: "paper", yref: "paper", x: (place.left + width / 2) / area.width, y: 1 - (place.top + height / 2) / area.height,
      xanchor: "center", yanchor: "middle", text: plain(text), showarrow: false, font: { size, color: css("--ink") }, borderpad: 0, bgcolor: css("--panel"),
    });
  }
  return placed;
}

const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

function note(selector, sentences) {
  one(selector).textContent = sentences.filter(Boolean).join(" ");
}
