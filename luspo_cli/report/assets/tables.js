// Tables, formulas and configurations, as text.

function table(caption, columns, rows) {
  const cell = (tag, text, right) => el(tag, right ? { className: "right", ...(tag === "th" && { scope: "col" }) } : tag === "th" ? { scope: "col" } : {}, text);
  const head = el("tr", {}, ...columns.map((column) => cell("th", column.title, column.right)));
  const body = rows.map((row) => el("tr", {}, ...row.map((text, i) => cell("td", text, columns[i].right))));
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...body)));
}

function drawTables(summary) {
  const section = document.getElementById("comparison");
  for (const one of summary.tables) {
    if (one.text !== undefined) section.append(el("p", { className: one.text.startsWith("warning:") ? "warning" : "note" }, one.text));
    else section.append(table(one.title, one.columns, one.rows));
  }
}

function drawFormulas(summary) {
  const section = document.getElementById("formulas");
  if (!summary.formulas.length) section.append(el("p", { className: "note" }, "No run here recorded its configuration."));
  for (const one of summary.formulas) {
    const rows = one.rows.map(([title, text]) => el("tr", {}, el("th", { scope: "row" }, title), el("td", {}, text)));
    section.append(el("h3", {}, one.label), one.equation && el("p", { className: "equation", tabIndex: 0 }, one.equation),
      el("details", { open: summary.formulas.length <= 3 }, el("summary", {}, "Parts, numbers and other trainers' spelling"),
        el("div", { className: "scroll" }, el("table", {}, el("tbody", {}, ...rows)))));
  }
}

function drawConfiguration(summary) {
  const section = document.getElementById("configuration");
  const { runs, keys, equal } = summary.configuration;
  if (!runs.length) {
    section.append(el("p", { className: "note" }, "No run here recorded its configuration."));
    return;
  }
  section.append(el("p", { className: "note" }, `${equal} keys are equal in all runs.`));
  const rows = (expected) => keys.filter((key) => key.expected === expected).map((key) => [key.key, ...key.values]);
  const columns = ["key", ...runs].map((title) => ({ title, right: false }));
  for (const [title, expected] of [["Differ although a comparison of objectives holds them equal", false], ["Differ by intention", true]]) {
    if (rows(expected).length) section.append(table(title, columns, rows(expected)));
    else if (!expected) section.append(el("p", { className: "note" }, "Nothing differs but what a comparison of objectives over seeds changes."));
  }
}
