// Opening the page: the summary first, then what is looked at.

async function open() {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser cannot unpack it; open it in a current Chrome, Edge, Firefox or Safari");
  }
  const summary = await part("summary");
  const unfinished = summary.runs.filter((run) => run.planned !== null && run.steps < run.planned).length;
  document.getElementById("about").textContent =
    `${summary.runs.length} run${summary.runs.length === 1 ? "" : "s"} of ${summary.variants.map((variant) => variant.label).join(", ")}` +
    `${unfinished ? `; ${unfinished} unfinished` : ""} · luspo ${summary.version}`;
  const drawings = [drawCurves(summary), drawTables(summary), drawFormulas(summary), drawConfiguration(summary), drawKept(summary), drawRollouts(summary)];
  const theme = document.getElementById("theme");
  const recolour = () => redraws.forEach((draw) => draw());
  theme.addEventListener("change", () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value;
    else delete document.documentElement.dataset.theme;
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  await Promise.all(drawings);
  // A section by its id: the address may hold anything, also what is no selector.
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.documentElement.dataset.opened = String(Math.round(performance.now()));
}

open().catch(trouble);
