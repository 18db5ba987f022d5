// Which classes go wrong, for all candidates; and what one candidate takes them for.
const examined = results.candidates.filter((candidate) => candidate.confusion);
const MANY_CLASSES = 24;
const HARDEST = 20;

if (examined.length) {
  charts.push(drawClasses, drawConfusion);
  one("#class-choice").hidden = results.classes.length <= MANY_CLASSES;
  one("#class-choice").addEventListener("change", drawClasses);
  one("#confusion-choice").addEventListener("change", drawConfusion);
  const select = one("#confusion-candidate");
  const best = examined.reduce((a, b) => ((b.rank ?? Infinity) < (a.rank ?? Infinity) ? b : a));
  examined.forEach((candidate, index) => select.append(element("option", { value: index }, candidate.name)));
  select.value = String(examined.indexOf(best));
  select.addEventListener("change", drawConfusion);
}

const heat = () => [[0, css("--heat0")], [0.15, css("--heat1")], [0.5, css("--heat2")], [1, css("--heat3")]];
const colourBar = (suffix) => ({
  thickness: 10, outlinewidth: 0, ticksuffix: suffix, nticks: 5, tickfont: { size: 11, color: css("--muted") }, len: 1, y: 0.5, x: 1.01, xpad: 4,
});

function drawClasses() {
  const many = results.classes.length > MANY_CLASSES;
  const errorOf = (candidate, index) => (candidate.class_accuracy[index] == null ? null : 100 * (1 - candidate.class_accuracy[index]));
  let order = results.classes.map((_, index) => index);
  if (many && choice("classes") === "hard") {
    const total = (index) => examined.reduce((sum, candidate) => sum + (errorOf(candidate, index) ?? 0), 0);
    order = [...order].sort((a, b) => total(b) - total(a)).slice(0, HARDEST);
  }
  const upright = narrow(); // classes down the page on a phone, across it otherwise
  const size = narrow() ? 11 : 12;
  const box = one("#class-chart");
  const names = examined.map((candidate) => short(candidate.name, upright ? 16 : 28));
  const classes = order.map((index) => short(results.classes[index], upright ? 14 : 18));
  const longest = (texts) => Math.max(...texts.map((text) => textWidth(text, size)));
  const rows = upright ? order.length : examined.length;
  const columns = upright ? examined.length : order.length;
  const steep = !(longest(upright ? names : classes) < (box.clientWidth - 260) / columns - 6);
  const across = upright ? names : classes;
  const margin = {
    l: longest(upright ? classes : names) + 14, r: narrow() ? 48 : 64,
    t: 8, b: steep ? longest(across) + 16 : 30,
  };
  const cell = { width: (box.clientWidth - margin.l - margin.r) / columns, height: upright ? Math.min(26, Math.max(15, 600 / rows)) : 30 };
  box.style.height = `${margin.t + margin.b + Math.max(rows * cell.height, 60)}px`;
  const z = upright
    ? order.map((index) => examined.map((candidate) => errorOf(candidate, index)))
    : examined.map((candidate) => order.map((index) => errorOf(candidate, index)));
  const label = (row, column) => (upright
    ? `${plain(short(examined[column].name, 40))}<br>${plain(results.classes[order[row]])}`
    : `${plain(short(examined[row].name, 40))}<br>${plain(results.classes[order[column]])}`);
  const every = Math.ceil((size - 1) / cell.width); // names across that would touch are left to the hover text
  const columnTicks = across.map((_, index) => index).filter((index) => index % every === 0);
  plot("class-chart", [{
    type: "heatmap", z, zmin: 0, zmax: highest(z), colorscale: heat(), xgap: cell.width > 8 ? 2 : 0.5, ygap: 2, hoverongaps: false, colorbar: colourBar(" %"),
    text: z.map((row, r) => row.map((_, c) => label(r, c))), hovertemplate: "<b>%{text}</b><br>%{z:.1f} % wrong<extra></extra>",
  }], {
    margin,
    annotations: cell.width >= 24 && cell.height >= 15 ? cellNumbers(z) : [],
    xaxis: { tickvals: columnTicks, ticktext: columnTicks.map((index) => plain(across[index])), tickangle: steep ? -90 : 0, showgrid: false, ticks: "", tickfont: { size, color: css("--muted") } },
    yaxis: { tickvals: z.map((_, row) => row), ticktext: (upright ? classes : names).map(plain), autorange: "reversed", showgrid: false, ticks: "", tickfont: { size, color: css("--muted") } },
  });
}

// Numbers in the cells, in the ink that stands out on each.
function cellNumbers(z, numbers = z) {
  return z.flatMap((row, r) => row.map((value, c) => ({ value, r, c }))).filter(({ value, r, c }) => value !== null && numbers[r][c] !== null)
    .map(({ value, r, c }) => ({
      x: c, y: r, text: numbers[r][c].toFixed(0), showarrow: false, font: { size: 11, color: inkOn(value / highest(z)) },
    }));
}

const highest = (z) => Math.max(...z.flat().map((value) => value ?? 0)) || 1;
const dark = () => document.documentElement.dataset.theme === "dark";
const inkOn = (share) => (dark() ? (share > 0.42 ? "#1b1e24" : "#e9e7e1") : (share > 0.42 ? "#ffffff" : "#1e2229"));

// Undo the encoding of the results: -n stands for n zeros.
function decode(codes, size) {
  const flat = [];
  for (const code of codes) {
    if (code < 0) for (let n = 0; n < -code; n++) flat.push(0);
    else flat.push(code);
  }
  return Array.from({ length: size }, (_, row) => flat.slice(row * size, (row + 1) * size));
}

function drawConfusion() {
  const candidate = examined[Number(one("#confusion-candidate").value)];
  const everything = choice("confusion") === "all";
  const names = results.matrix.map((index) => results.classes[index]);
  const counts = decode(candidate.confusion, names.length);
  const totals = candidate.class_totals;
  const share = (row, column) => (totals[row] ? (100 * counts[row][column]) / totals[row] : null);
  const z = counts.map((line, row) => line.map((_, column) => (row === column && !everything ? null : share(row, column))));

  const box = one("#confusion-chart");
  const size = names.length > 40 ? 9 : narrow() ? 10 : 12;
  const labelled = names.map((name) => short(name, narrow() ? 10 : 16));
  const longest = Math.max(...labelled.map((name) => textWidth(name, size)));
  const steep = longest > 22;
  const margin = { l: longest + 36, r: narrow() ? 46 : 60, t: 6, b: (steep ? longest : size) + 38 };
  const square = Math.max(120, Math.min(box.clientWidth - margin.l - margin.r, names.length > MANY_CLASSES ? 680 : 480));
  box.style.height = `${square + margin.t + margin.b}px`;
  const width = Math.min(box.clientWidth, square + margin.l + margin.r);
  const every = Math.max(1, Math.ceil((names.length * (size + 1)) / square));
  const ticks = names.map((_, index) => index).filter((index) => index % every === 0);
  const axis = {
    tickvals: ticks, ticktext: ticks.map((index) => plain(labelled[index])), showgrid: false, ticks: "", tickfont: { size, color: css("--muted") },
  };
  plot("confusion-chart", [{
    type: "heatmap", z, zmin: 0, zmax: highest(z), colorscale: heat(), hoverongaps: false, colorbar: colourBar(" %"), xgap: square / names.length > 12 ? 1 : 0, ygap: square / names.length > 12 ? 1 : 0,
    text: counts.map((line, row) => line.map((count, column) => `${plain(names[row])} → ${plain(names[column])}<br>${count} of ${totals[row]}`)),
    hovertemplate: "<b>%{text}</b> (%{z:.1f} %)<extra></extra>",
  }], {
    margin, width,
    annotations: square / names.length >= 26 ? cellNumbers(z, counts.map((line) => line.map((count) => count || null))) : [],
    xaxis: { ...axis, tickangle: steep ? -90 : 0, title: title("predicted") },
    yaxis: { ...axis, autorange: "reversed", title: title("true class") },
  });

  const mistakes = counts.flatMap((line, row) => line.map((count, column) => ({ count, row, column }))).filter(({ count, row, column }) => count && row !== column);
  mistakes.sort((a, b) => b.count - a.count);
  one("#mistakes").replaceChildren(...mistakes.slice(0, 10).map(({ count, row, column }) => element("li", {},
    element("span", {}, `${names[row]} → ${names[column]}`), element("span", { class: "number" }, `${count} · ${share(row, column).toFixed(1)} %`))));
  if (!mistakes.length) one("#mistakes").append(element("li", {}, "None: every sample was recognised."));
  note("#confusion-note", [
    "Rows are true classes, columns predictions; counts are summed over seeds, per cent are of the true class.",
    names.length < results.classes.length ? `The ${names.length} classes with most errors of ${results.classes.length} are shown; results.json has all.` : "",
  ]);
}
