// Learning curves: the mean over seeds as a line, all seeds as a band.
const curved = results.candidates.filter((candidate) => candidate.runs.some((run) => run.curves.val_loss.length || run.curves.val_accuracy.length));
const hidden = new Set();

if (curved.length) {
  charts.push(drawCurves);
  one("#curve-choice").addEventListener("change", drawCurves);
  const chips = one("#curve-candidates");
  for (const candidate of curved) {
    const chip = element("button", { type: "button", "aria-pressed": "true" }, ...nameElements(candidate));
    chip.addEventListener("click", () => {
      if (!hidden.delete(candidate)) hidden.add(candidate);
      pressChips();
    });
    chips.append(chip);
  }
  if (curved.length > 2) {
    const sets = chips.appendChild(element("span", { class: "sets" }));
    for (const [label, choose] of [["all", () => hidden.clear()], ["none", () => curved.forEach((candidate) => hidden.add(candidate))]]) {
      const button = element("button", { type: "button", class: "set" }, label);
      button.addEventListener("click", () => { choose(); pressChips(); });
      sets.append(button);
    }
  }
}

function pressChips() {
  all("#curve-candidates button[aria-pressed]").forEach((chip, index) => chip.setAttribute("aria-pressed", String(!hidden.has(curved[index]))));
  drawCurves();
}

function drawCurves() {
  const key = choice("curve");
  const factor = key === "val_accuracy" ? scale : 1;
  const bands = [];
  const lines = [];
  let values = [];
  let lastEpoch = 0;
  for (const candidate of curved.filter((one) => !hidden.has(one))) {
    const runs = candidate.runs.map((run) => run.curves).filter((curves) => curves[key].length);
    if (!runs.length) continue;
    const longest = runs.reduce((a, b) => (b[key].length > a[key].length ? b : a));
    const epochs = longest.epoch.length ? longest.epoch : longest[key].map((_, index) => index + 1);
    lastEpoch = Math.max(lastEpoch, ...epochs);
    const summary = epochs.map((_, index) => {
      const seeds = runs.map((curves) => curves[key][index]).filter((value) => value !== null && value !== undefined).map((value) => factor * value);
      return seeds.length
        ? { low: Math.min(...seeds), mean: seeds.reduce((a, b) => a + b, 0) / seeds.length, high: Math.max(...seeds) }
        : { low: null, mean: null, high: null };
    });
    values = values.concat(summary.map((point) => point.mean).filter((value) => value !== null));
    if (runs.length > 1) {
      const shared = { type: "scatter", mode: "lines", x: epochs, line: { width: 0, color: colour(candidate) }, hoverinfo: "skip" };
      bands.push({ ...shared, y: summary.map((point) => point.low) });
      bands.push({ ...shared, y: summary.map((point) => point.high), fill: "tonexty", fillcolor: `${colour(candidate)}22` });
    }
    lines.push({
      type: "scatter", mode: epochs.length > 1 ? "lines" : "markers", x: epochs, y: summary.map((point) => point.mean),
      line: { width: 2, color: colour(candidate), dash: DASHES[Math.floor(candidate.colour / 3) % DASHES.length] },
      marker: { color: colour(candidate), symbol: SYMBOLS[symbolIndex(candidate)], size: 9 },
      hovertemplate: `<b>${plain(short(candidate.name, 44))}</b><br>epoch %{x}: %{y:.${key === "val_accuracy" && results.fraction ? 1 : 3}f}${key === "val_accuracy" && results.fraction ? " %" : ""}<extra></extra>`,
    });
  }
  const log = key !== "val_accuracy" && values.length > 0 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;
  note("#curve-note", [
    "Lines are means over seeds, bands reach from the lowest to the highest seed.",
    results.every_nth_epoch > 1 ? `Every ${results.every_nth_epoch}th epoch is drawn.` : "",
    log ? "The vertical axis is logarithmic." : "",
  ]);
  plot("curve-chart", [...bands, ...lines], {
    margin: { l: 58, r: 18, t: 14, b: 52 },
    xaxis: { title: title("Epoch"), rangemode: "tozero", dtick: lastEpoch <= 12 ? 1 : undefined },
    yaxis: { type: log ? "log" : "linear", ticksuffix: key === "val_accuracy" && results.fraction ? " %" : "", nticks: 8, dtick: log ? "D2" : undefined },
  });
}
