// Curves: every run thin, means over runs thick, bands over runs; by steps, tokens or time.

const AXES = { steps: "training steps", tokens: "response tokens sampled", seconds: "time in steps (s)" };

/** Centred moving mean over `window` points, shorter at both ends; gaps stay open. */
function smoothed(values, window) {
  if (window <= 1) return values;
  const sums = [0], counts = [0];
  values.forEach((value, i) => {
    sums.push(sums[i] + (value ?? 0));
    counts.push(counts[i] + (value === null ? 0 : 1));
  });
  const before = Math.floor(window / 2);
  return values.map((value, i) => {
    if (value === null) return null;
    const start = Math.max(0, i - before), end = Math.min(values.length, i - before + window);
    return (sums[end] - sums[start]) / (counts[end] - counts[start]);
  });
}

/** Mean, lowest, highest and 95 % interval over curves at the steps that all of them have; null where one has a gap. */
function overRuns(curves, student) {
  const [first, ...others] = curves.map((curve) => new Map(curve.steps.map((step, i) => [step, i])));
  const found = { steps: [], x: [], mean: [], range: [[], []], interval: [[], []] };
  for (const [step, place] of first) {
    const places = [place, ...others.map((other) => other.get(step))];
    if (places.includes(undefined)) continue;
    const values = places.map((at, i) => curves[i].values[at]);
    const xs = places.map((at, i) => curves[i].x[at]);
    const whole = !values.includes(null) && !xs.includes(null);
    const n = values.length;
    const mean = whole ? values.reduce((sum, value) => sum + value, 0) / n : null;
    const deviation = whole && n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : 0;
    const half = whole && n > 1 ? (student[n] * deviation) / Math.sqrt(n) : null;
    found.steps.push(step);
    found.x.push(whole ? xs.reduce((sum, value) => sum + value, 0) / n : null);
    found.mean.push(mean);
    found.range[0].push(whole ? Math.min(...values) : null);
    found.range[1].push(whole ? Math.max(...values) : null);
    found.interval[0].push(half === null ? null : mean - half);
    found.interval[1].push(half === null ? null : mean + half);
  }
  return found;
}

/** [start, end) of each stretch without a gap. */
function stretches(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (found.length && found.at(-1)[1] === i) found.at(-1)[1] = i + 1;
    else found.push([i, i + 1]);
  });
  return found;
}

function translucent(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

function drawCurves(summary) {
  const section = document.getElementById("curves");
  const state = { axis: "steps", window: summary.window, band: "range", shown: new Set(summary.runs.keys()), thin: true };
  const names = summary.metrics.map((metric) => metric.name);
  const described = new Map(summary.metrics.map((metric) => [metric.name, metric]));
  const lacking = { steps: [], tokens: [], seconds: [] };
  summary.axes.forEach((axes, run) => {
    for (const axis of Object.keys(AXES)) if (!axes[axis]) lacking[axis].push(summary.runs[run].name);
  });
  const panels = [];
  let waiting = 0;
  const redraw = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => panels.forEach((panel) => panel.draw().catch(trouble)));
  };

  const longest = Math.max(...summary.axes.map((axes) => axes.steps.length));
  const shownWindow = el("output", {});
  const slider = el("input", {
    type: "range", min: 1, max: Math.max(3, Math.floor(longest / 3)) | 1, step: 2, value: state.window,
    oninput: () => { state.window = Number(slider.value); tell(); redraw(); },
  });
  const tell = () => {
    const steps = state.window * summary.stride;
    shownWindow.textContent = steps === 1 ? "none" : `mean over ${steps} steps`;
    slider.setAttribute("aria-valuetext", shownWindow.textContent);
  };
  tell();
  const axis = choice("Across", Object.entries(AXES).filter(([key]) => lacking[key].length < summary.runs.length), state.axis,
    (value) => { state.axis = value; redraw(); });
  const band = choice("Band over seeds", [["range", "lowest to highest run"], ["interval", "95 % interval of the mean"], ["", "none"]],
    state.band, (value) => { state.band = value; redraw(); });
  const thin = tick("Single runs", true, (value) => { state.thin = value; redraw(); });

  const toggles = el("fieldset", {}, el("legend", {}, "Shown objectives and runs"));
  const list = el("div", { className: "objectives" });
  for (const variant of summary.variants) {
    const boxes = [];
    const sync = () => {
      const on = variant.runs.filter((run) => state.shown.has(run)).length;
      all.box.checked = on > 0;
      all.box.indeterminate = on > 0 && on < variant.runs.length;
      redraw();
    };
    let sample = swatch(variant);
    onColours(() => { const fresh = swatch(variant); sample.replaceWith(fresh); sample = fresh; });
    const all = tick(variant.label, true, (checked) => {
      variant.runs.forEach((run, i) => {
        if (checked) state.shown.add(run); else state.shown.delete(run);
        boxes[i].box.checked = checked;
      });
      sync();
    });
    all.label.append(sample);
    for (const run of variant.runs) {
      const box = tick(summary.runs[run].name, true, (checked) => {
        if (checked) state.shown.add(run); else state.shown.delete(run);
        sync();
      });
      boxes.push(box);
    }
    list.append(el("div", { className: "objective", role: "group", "aria-label": variant.label }, all.label, ...boxes.map((box) => box.label)));
  }
  toggles.append(list);
  section.append(
    el("div", { className: "controls" }, axis.label, el("label", {}, "Smoothing", slider, shownWindow), band.label, thin.label), toggles);

  const wanted = ["response_length/mean", "reward/accuracy/mean"];
  const grid = el("div", { className: "panels" });
  section.append(grid);
  wanted.map((name, i) => (names.includes(name) ? name : names[Math.min(i, names.length - 1)])).forEach((name, place) => {
    panels.push(curvePanel(summary, described, state, name, place, grid, lacking));
  });
  for (const note of summary.notes) section.append(el("p", { className: "note" }, note));
  onColours(redraw);
  return Promise.all(panels.map((panel) => panel.draw()));
}

function curvePanel(summary, described, state, first, place, grid, lacking) {
  let metric = first, log = false;
  const plot = el("div", { className: "plot", role: "img" });
  const meaning = el("p", { className: "meaning" });
  const picked = choice(place ? "Right curve" : "Left curve", summary.metrics.map((one) => [one.name, one.name]), metric,
    (value) => { metric = value; draw().catch(trouble); });
  const scale = tick("Logarithmic", false, (value) => { log = value; draw().catch(trouble); });
  grid.append(el("div", { className: "panel" }, el("div", { className: "controls" }, picked.label, scale.label), plot, meaning));

  async function draw() {
    const asked = metric;
    const { unit, meaning: text, sparse, part: name } = described.get(asked);
    const recorded = await part(name);
    if (asked !== metric) return;
    const traces = [], missing = [];
    const hover = `%{y:.5~g}${unit === "1" ? "" : ` ${unit}`}`;
    for (const variant of summary.variants) {
      const hue = shownColour(variant.colour);
      const curves = [];
      for (const run of variant.runs) {
        if (!state.shown.has(run)) continue;
        const axes = summary.axes[run], found = recorded[run];
        if (!found || !axes[state.axis]) { missing.push(summary.runs[run].name); continue; }
        const steps = found.steps ?? axes.steps;
        const x = found.steps ? steps.map((step) => at(axes, state.axis, step)) : axes[state.axis];
        curves.push({ run, steps, x, values: sparse ? found.values : smoothed(found.values, state.window) });
      }
      if (!curves.length) continue;
      const several = curves.length > 1;
      const over = overRuns(curves, summary.student);
      if (several && state.band) {
        const [low, high] = over[state.band];
        for (const [start, end] of stretches(low)) {
          const edge = { x: over.x.slice(start, end), mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
          traces.push({ ...edge, y: low.slice(start, end) },
            { ...edge, y: high.slice(start, end), fill: "tonexty", fillcolor: translucent(hue, 0.14) });
        }
      }
      if (!several || state.thin) {
        for (const curve of curves) traces.push(line(curve.x, curve.values, summary.runs[curve.run].name, hue,
          several ? 1 : 2.4, several ? 0.55 : 1, several ? "solid" : variant.dash, sparse, curve.steps));
      }
      if (several) traces.push(line(over.x, over.mean, `${variant.label}, mean`, hue, 2.6, 1, variant.dash, sparse, over.steps));
    }
    for (const one of summary.predictions) {
      const variant = summary.variants[one.variant];
      const run = variant.runs.find((run) => state.shown.has(run) && summary.axes[run][state.axis]);
      if (one.metric !== asked || run === undefined) continue;
      // On other axes than steps it reaches as far as the run, whose tokens and time are known.
      const reach = state.axis === "steps" ? Infinity : summary.axes[run].steps.at(-1);
      const places = one.steps.map((step, i) => i).filter((i) => one.steps[i] <= reach);
      const taken = (values) => places.map((i) => values[i]);
      const x = taken(one.steps).map((step) => at(summary.axes[run], state.axis, step));
      const hue = shownColour(variant.colour);
      if (one.low && one.high) {
        const edge = { x, mode: "lines", line: { width: 1.6, color: hue, dash: "1.5px,4px" }, hoverinfo: "skip" };
        traces.push({ ...edge, y: taken(one.low) }, { ...edge, y: taken(one.high) });
      }
      traces.push(line(x, taken(one.mean), `${one.label}, ${variant.label}`, hue, 2, 1, "12px,5px", false, taken(one.steps)));
    }
    for (const trace of traces) if (trace.name) trace.hovertemplate = `${plain(trace.name)}<br>step %{customdata}: ${hover}<extra></extra>`;
    const title = unit === "1" ? asked : `${asked} (${unit})`;
    plot.setAttribute("aria-label", `Curves of ${title} over ${AXES[state.axis]}; the tables below hold the numbers.`);
    const absent = [...new Set([...missing, ...(state.axis === "steps" ? [] : lacking[state.axis])])];
    meaning.textContent = text + (absent.length ? ` Not recorded, so not drawn: ${absent.join(", ")}.` : "");
    await Plotly.react(plot, traces, layout({
      hovermode: "closest",
      xaxis: { title: { text: AXES[state.axis], standoff: 6 } },
      yaxis: { title: { text: plain(title), standoff: 6 }, type: log ? "log" : "linear" },
    }), PLOT);
  }
  return { draw };
}

/** Where a step lies on another axis: at the last point that is not after it; 0 before the first. */
function at(axes, axis, step) {
  if (axis === "steps") return step;
  let found = 0;
  for (let i = 0; i < axes.steps.length && axes.steps[i] <= step; i++) found = axes[axis][i] ?? found;
  return found;
}

function line(x, y, name, hue, width, opacity, dash, points, steps) {
  // A line needs two neighbours: a value between two gaps is drawn as a point.
  const lone = y.map((value, i) => value !== null && (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null);
  const marked = points || lone.includes(true);
  return {
    x, y, name, customdata: steps, opacity, mode: marked ? "lines+markers" : "lines", connectgaps: points,
    line: { color: hue, width, dash }, marker: { color: hue, size: points ? 6 : lone.map((alone) => (alone ? 5 : 0)) },
  };
}
