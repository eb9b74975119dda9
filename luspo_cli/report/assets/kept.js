// Kept advantage by response length over training, one map an objective on one scale of colours.

const KEPT = {
  kept: ["kept advantage", "Mean over the rollouts of a length of the advantage that no bound of the clip removed. Where it is higher at short lengths, responses are pushed to be shorter."],
  weighted: ["kept advantage × weight", "The same times the weight of the rollout's tokens in the loss: 1/|y| under gspo and grpo, 1 under luspo."],
  advantage: ["advantage before the clip", "Mean advantage as the estimator gave it, whatever was clipped afterwards."],
  count: ["rollouts", "How many rollouts of each length were counted."],
};

function drawKept(summary) {
  const section = document.getElementById("kept");
  if (!summary.kept) {
    section.append(el("p", { className: "note" }, "No run here recorded advantages by length or stored rollouts."));
    return null;
  }
  const { edges, runs, notes } = summary.kept;
  section.append(...notes.map((note) => el("p", { className: "warning" }, note)));
  if (!edges.length) return null;
  const marked = runs.some((run) => run.kept);
  const mapOf = (run) => (state.quantity === "count" ? runs[run].kept ?? runs[run].advantage : runs[run][state.quantity]);
  const state = { quantity: marked ? "kept" : "advantage", seed: "", least: 5 };
  const pairs = Object.entries(KEPT).filter(([key]) => key === "count" || runs.some((run) => run[key])).map(([key, [text]]) => [key, text]);
  const seeds = [...new Set(summary.variants.flatMap((variant) => variant.runs.map((run) => summary.runs[run].seed)))].filter((seed) => seed !== null);
  const quantity = choice("Colour", pairs, state.quantity, (value) => { state.quantity = value; draw(); });
  const seed = choice("Runs", [["", "all seeds together"], ...seeds.map((one) => [String(one), `seed ${one}`])], "", (value) => { state.seed = value; draw(); });
  const least = el("input", { type: "number", min: 1, max: 1000, value: state.least, onchange: () => { state.least = Math.max(1, Number(least.value) || 1); draw(); } });
  const meaning = el("p", { className: "meaning" });
  const grid = el("div", { className: "panels" });
  section.append(el("div", { className: "controls" }, quantity.label, seed.label, el("label", {}, "Least rollouts of a cell", least)), meaning, grid);
  const names = edges.slice(0, -1).map((edge, i) => (edges[i + 1] - edge === 1 ? `${edge}` : `${edge}–${edges[i + 1] - 1}`));
  const panels = summary.variants.map((variant) => {
    const plot = el("div", { className: "plot", role: "img" }), note = el("p", { className: "note" });
    grid.append(el("div", { className: "panel" }, el("h3", {}, variant.label), plot, note));
    return { variant, plot, note };
  });

  /** Sums and counts of the chosen runs by step and bin; null where none of them has the quantity. */
  function gathered(variant) {
    const chosen = variant.runs.filter((run) => (state.seed === "" || String(summary.runs[run].seed) === state.seed) && mapOf(run));
    const byStep = new Map();
    for (const run of chosen) {
      const found = mapOf(run);
      found.columns.forEach(([first, last], i) => {
        const row = byStep.get(first) ?? { title: first === last ? `${first}` : `${first}–${last}`, sums: names.map(() => 0), counts: names.map(() => 0) };
        found.sums[i].forEach((sum, bin) => { row.sums[bin] += sum; row.counts[bin] += found.counts[i][bin]; });
        byStep.set(first, row);
      });
    }
    return chosen.length ? [...byStep].sort((a, b) => a[0] - b[0]) : null;
  }

  async function draw() {
    const counting = state.quantity === "count";
    const maps = panels.map(({ variant }) => gathered(variant));
    const value = (row, bin) => (row.counts[bin] < state.least ? null : counting ? row.counts[bin] : row.sums[bin] / row.counts[bin]);
    const all = maps.flatMap((map) => (map ?? []).flatMap(([, row]) => names.map((_, bin) => value(row, bin)))).filter((one) => one !== null).map(Math.abs).sort((a, b) => a - b);
    const top = all.length ? all[Math.floor(0.98 * (all.length - 1))] || 1 : 1;
    meaning.textContent = KEPT[state.quantity][1];
    const middle = colour("raised"), more = `rgb(${colour("more")})`, less = `rgb(${colour("less")})`;
    await Promise.all(panels.map(({ variant, plot, note }, place) => {
      const map = maps[place];
      note.textContent = map ? "" : state.quantity === "advantage" || counting ? "These runs stored no rollouts." : "These runs recorded no clip marks (an older version wrote them, or another trainer): at most the advantage before the clip is known.";
      plot.hidden = !map;
      if (!map) return null;
      plot.setAttribute("aria-label", `${KEPT[state.quantity][0]} by response length and step, ${variant.label}`);
      const z = names.map((_, bin) => map.map(([, row]) => value(row, bin)));
      const counts = names.map((_, bin) => map.map(([, row]) => row.counts[bin]));
      const trace = {
        type: "heatmap", x: map.map(([, row]) => row.title), y: names, z, customdata: counts, xgap: map.length < 80 ? 1 : 0, ygap: 1, hoverongaps: false,
        colorscale: counting ? [[0, middle], [1, more]] : [[0, less], [0.5, middle], [1, more]], zmin: counting ? 0 : -top, zmax: top,
        colorbar: { thickness: 12, outlinewidth: 0, tickfont: { color: colour("text") } },
        hovertemplate: `step %{x}, %{y} tokens: %{z:.3~g}<br>%{customdata} rollouts<extra></extra>`,
      };
      return Plotly.react(plot, [trace], layout({
        xaxis: { title: { text: "training step" }, type: "category", nticks: 12, showgrid: false }, yaxis: { title: { text: "response length (tokens)" }, type: "category", showgrid: false },
      }), PLOT);
    }));
  }
  onColours(() => draw().catch(trouble));
  return draw();
}
