// The ranking: sorting by any column, and the verdict on the chosen cost.
const SORTS = {
  rank: (candidate) => ranked.indexOf(candidate) >= 0 ? (results.maximize ? -candidate.score : candidate.score) : Infinity,
  name: (candidate) => candidate.name.toLowerCase(),
  score: (candidate) => candidate.score,
  gap: (candidate) => candidate.gap ?? -Infinity,
  lr: (candidate) => candidate.lr,
};
const sortValue = (candidate, key) => (SORTS[key] ? SORTS[key](candidate) : costOn(candidate, key));

for (const table of all("table.ranking")) {
  for (const header of all("th[data-sort]", table)) {
    one("button", header).addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      sortTable(table, header.dataset.sort, descending);
    });
  }
}
one("#sort-choice")?.addEventListener("change", (event) => all("table.ranking").forEach((table) => sortTable(table, event.target.value, event.target.value === "throughput")));

function sortTable(table, key, descending) {
  const bodies = all("tbody", table).map((body) => ({ body, value: sortValue(byName.get(body.dataset.name), key) }));
  bodies.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // what is absent comes last
    const order = a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
    return descending ? -order : order;
  });
  bodies.forEach(({ body }) => table.append(body));
  for (const header of all("th[data-sort]", table)) {
    if (header.dataset.sort === key) header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
}

function showVerdicts() {
  for (const place of all(".dominated[data-candidate]")) {
    const reason = byName.get(place.dataset.candidate).dominated[state.axis];
    place.replaceChildren(...(reason ? [element("b", {}, "Dominated"), `: ${reason}.`] : []));
  }
}
