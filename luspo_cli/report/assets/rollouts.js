// The rollout browser: a step, its prompts, a group's responses side by side, and the same prompt in another run.

const SORTS = { reward: "reward", advantage: "advantage", response_length: "length", "": "order of sampling" };
const KINDS = { right: "right", wrong: "wrong", cut: "cut by the limit" };
const SHORT = 3000;
const MOST_SPANS = 6000;
const MOST_HITS = 300;
/** Nats of the lightest full shade: in a step's first mini-batch log-ratios are rounding noise of 1e-4. */
const LEAST_FULL = 0.002;

const kindsOf = (columns, row) => {
  const kinds = [columns.status[row] === "correct" ? "right" : "wrong"];
  if (columns.stop_reason[row] === "length") kinds.push("cut");
  return kinds;
};
/** For the filters a cut response is cut, whatever else it is. */
const kindOf = (columns, row) => kindsOf(columns, row).at(-1);

function drawRollouts(summary) {
  const section = document.getElementById("rollouts");
  const { runs, rule, unit } = summary.rollouts;
  const stored = runs.map((run, i) => (run.steps.length ? i : -1)).filter((i) => i >= 0);
  if (!stored.length) {
    section.append(el("p", { className: "note" }, "No run here stored rollouts (run.rollouts_every = 0, or a log of another trainer)."));
    return null;
  }
  const state = { run: stored[0], step: 0, problem: "", beside: "", sort: "reward", rising: false, kinds: new Set(Object.keys(KINDS)), find: "" };
  const runName = (i) => summary.runs[i].name;
  const runPairs = stored.map((i) => [String(i), runName(i)]);

  const run = choice("Run", runPairs, state.run, (value) => {
    if (state.beside === value) state.beside = String(state.run);
    state.run = Number(value);
    snapStep();
    show();
  });
  const step = choice("Step", [], "", (value) => { state.step = Number(value); show(); });
  const earlier = el("button", { type: "button", "aria-label": "earlier step", onclick: () => moveStep(-1) }, "◀");
  const later = el("button", { type: "button", "aria-label": "later step", onclick: () => moveStep(1) }, "▶");
  const beside = choice("Beside it", [["", "nothing"], ...runPairs], "", (value) => { state.beside = value; show(); });
  const sort = choice("Responses sorted by", Object.entries(SORTS), state.sort, (value) => { state.sort = value; show(); });
  const rising = choice("Order", [["", "largest first"], ["1", "smallest first"]], "", (value) => { state.rising = value === "1"; show(); });
  const boxes = Object.entries(KINDS).map(([kind, title]) => {
    const box = tick(title, true, (checked) => { if (checked) state.kinds.add(kind); else state.kinds.delete(kind); show(); });
    return { kind, ...box };
  });
  const find = el("input", { type: "search", size: 24, oninput: () => { state.find = find.value; show(); },
    onkeydown: (event) => { if (event.key === "Enter") searchAll(); } });
  const searchButton = el("button", { type: "button", onclick: () => searchAll() }, "Search all runs and steps");
  const status = el("p", { className: "note", role: "status" });
  const absent = el("p", { className: "warning", role: "alert", hidden: true });
  const hits = el("div", {});
  const prompts = el("ul", { className: "prompts", "aria-label": "Prompts of this step" });
  const view = el("div", {});
  const notes = runs.flatMap((one) => one.notes);
  section.append(
    el("p", { className: "note" }, rule), ...notes.map((note) => el("p", { className: "note" }, note)),
    el("div", { className: "controls" }, run.label, el("div", { className: "field" }, step.label.firstChild, el("span", { className: "inline" }, earlier, step.select, later)),
      beside.label, sort.label, rising.label),
    el("div", { className: "controls" }, el("fieldset", {}, el("legend", {}, "Responses that are"), ...boxes.flatMap((box) => [box.label, " "])),
      el("label", {}, "Text in prompt or response", find), searchButton),
    absent, status, hits, el("div", { className: "browser" }, prompts, view),
    el("p", { className: "note" }, "Keys inside this section: ", el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " next and previous prompt, ",
      el("kbd", {}, "."), " ", el("kbd", {}, ","), " later and earlier step, ", el("kbd", {}, "s"), " next order, ", el("kbd", {}, "/"), " search. The address of the page names run, step and prompt: copy it to come back here."));
  step.select.setAttribute("aria-label", "Step");

  const stepsOf = (i) => runs[i].steps;
  const entryOf = (i, number) => stepsOf(i).find((one) => one.step === number);

  /** The nearest shown step of the chosen run to the one that was looked at. */
  function snapStep() {
    const steps = stepsOf(state.run).map((one) => one.step);
    state.step = steps.reduce((best, one) => (Math.abs(one - state.step) < Math.abs(best - state.step) ? one : best), steps[0]);
  }
  function moveStep(by) {
    const steps = stepsOf(state.run).map((one) => one.step);
    const next = steps[steps.indexOf(state.step) + by];
    if (next !== undefined) { state.step = next; show(); }
  }
  function movePrompt(by) {
    const buttons = [...prompts.querySelectorAll("button")];
    const now = buttons.findIndex((button) => button.getAttribute("aria-current") === "true");
    const next = buttons[Math.min(buttons.length - 1, Math.max(0, now + by))];
    if (next) { next.click(); }
  }

  /** Scroll the list of prompts, and nothing around it: `scrollIntoView` would move the page as well. */
  function scrollToCurrent() {
    const current = prompts.querySelector('[aria-current="true"]')?.getBoundingClientRect();
    if (!current) return;
    const list = prompts.getBoundingClientRect();
    if (current.top < list.top) prompts.scrollTop -= list.top - current.top;
    else if (current.bottom > list.bottom) prompts.scrollTop += current.bottom - list.bottom;
  }

  const matches = (text) => !state.find || text.toLowerCase().includes(state.find.toLowerCase());
  function rowsOf(data, group) {
    const { columns } = data;
    const whole = matches(group.prompt) || matches(group.id);
    const rows = [];
    for (let row = group.rows[0]; row < group.rows[1]; row++) {
      if (state.kinds.has(kindOf(columns, row)) && (whole || matches(columns.response[row]))) rows.push(row);
    }
    if (state.sort) {
      const by = columns[state.sort], sign = state.rising ? 1 : -1;
      rows.sort((a, b) => sign * ((by[a] ?? -Infinity) - (by[b] ?? -Infinity)) || a - b);
    }
    return rows;
  }

  /** What a deep link asks for and does not get, said once. */
  let linked = null;
  function tellAbsent(data) {
    if (linked === null) return;
    const said = [];
    if (linked.run === null) said.push("The link names no run: write #run=NAME&step=NUMBER.");
    else if (linked.run !== runName(state.run)) said.push(`No run ${linked.run} with rollouts is on this page.`);
    else {
      if (linked.step !== null && Number(linked.step) !== state.step) said.push(`Step ${linked.step} of ${linked.run} is not on this page: ${Number.isFinite(Number(linked.step)) ? "the nearest one" : `step ${state.step}`} is shown.`);
      if (linked.problem && !data.groups.some((group) => group.id === linked.problem)) said.push(`Problem ${linked.problem} is not among the prompts of step ${state.step} on this page.`);
      said.push(...linked.ignored);
    }
    linked = null;
    absent.textContent = said.join(" ");
    absent.hidden = !said.length;
  }

  let turn = 0;
  async function show() {
    const mine = ++turn;
    const entry = entryOf(state.run, state.step);
    const other = state.beside === "" ? null : Number(state.beside);
    const twin = other === null ? null : entryOf(other, state.step);
    const [data, twinData] = await Promise.all([part(entry.part), twin ? part(twin.part) : null]);
    if (mine !== turn) return;
    tellAbsent(data);
    fill(run.select, runPairs, state.run);
    fill(step.select, stepsOf(state.run).map((one) => [String(one.step), one.shown < one.stored ? `${one.step} (${one.shown} of ${one.stored})` : `${one.step}`]), state.step);
    fill(beside.select, [["", "nothing"], ...runPairs.filter(([key]) => key !== String(state.run))], state.beside);
    sort.select.value = state.sort;
    rising.select.value = state.rising ? "1" : "";
    for (const box of boxes) box.box.checked = state.kinds.has(box.kind);
    if (find.value !== state.find) find.value = state.find;
    const places = stepsOf(state.run).map((one) => one.step);
    earlier.disabled = places.indexOf(state.step) <= 0;
    later.disabled = places.indexOf(state.step) >= places.length - 1;

    const groups = data.groups.map((group) => ({ group, rows: rowsOf(data, group) })).filter(({ rows }) => rows.length);
    const held = prompts.contains(document.activeElement);
    let chosen = groups.find(({ group }) => group.id === state.problem) ?? groups[0];
    if (!groups.some(({ group }) => group.id === state.problem) && data.groups.some((group) => group.id === state.problem) && !state.find) {
      chosen = { group: data.groups.find((group) => group.id === state.problem), rows: [] };
    }
    state.problem = chosen?.group.id ?? state.problem;
    prompts.replaceChildren(...groups.map(({ group, rows }) => {
      const current = group.id === state.problem;
      const all = group.rows[1] - group.rows[0];
      const right = countRight(data, group);
      const lengths = data.columns.response_length.slice(group.rows[0], group.rows[1]);
      const mean = lengths.reduce((sum, one) => sum + one, 0) / all;
      return el("li", {}, el("button", { type: "button", "aria-current": String(current), onclick: () => { state.problem = group.id; show(); } },
        el("span", { className: "head" }, group.prompt.slice(0, 120)),
        el("span", { className: "id" }, `${group.id} · ${right} of ${all} right · mean ${number(mean, 3)} tokens${rows.length < all ? ` · ${rows.length} shown` : ""}`)));
    }));
    if (held) prompts.querySelector('[aria-current="true"]')?.focus();
    scrollToCurrent();
    const count = groups.reduce((sum, { rows }) => sum + rows.length, 0);
    status.textContent = `${count} responses to ${groups.length} prompts shown, of ${entry.shown} of ${runName(state.run)} at step ${state.step}.`;
    view.replaceChildren(...(chosen ? groupView(chosen, data, other, twinData) : [el("p", {}, "No response fits the filters.")]));
    remember();
  }

  const countRight = (data, group) => data.columns.status.slice(group.rows[0], group.rows[1]).filter((one) => one === "correct").length;

  function groupView({ group, rows }, data, other, twinData) {
    const sides = [side(state.run, group, rows, data)];
    if (other !== null) {
      const twinGroup = twinData?.groups.find((one) => one.id === group.id);
      const why = !twinData ? `${runName(other)} has no rollouts of step ${state.step} on this page.` : `${runName(other)} has no rollouts of this problem at step ${state.step} on this page: runs of equal seed share their problems.`;
      sides.push(twinGroup ? side(other, twinGroup, rowsOf(twinData, twinGroup), twinData) : el("section", {}, el("h3", {}, runName(other)), el("p", { className: "note" }, why)));
    }
    return [
      el("p", { className: "note" }, `Problem `, el("code", {}, group.id), `, answer `, el("code", {}, group.answer)),
      el("div", { className: "prompt code", tabIndex: 0, role: "region", "aria-label": "Prompt" }, group.prompt),
      el("div", { className: other === null ? "sides" : "sides two" }, ...sides),
    ];
  }

  function side(index, group, rows, data) {
    const all = group.rows[1] - group.rows[0];
    const variant = summary.variants.find((one) => one.runs.includes(index));
    const limit = shadeLimit(data.columns.log_ratios, group.rows, unit);
    const title = `${runName(index)}: ${countRight(data, group)} of ${all} right`;
    return el("section", { "aria-label": title }, el("h3", {}, swatch(variant), ` ${title}`, rows.length < all ? ` (${rows.length} shown)` : ""), limit && key(limit),
      rows.length ? null : el("p", {}, "No response fits the filters."),
      el("div", { className: "cards" }, ...rows.map((row) => card(data.columns, row, row - group.rows[0] + 1, limit, unit))));
  }

  function key(limit) {
    const chip = (name, text) => { const one = el("span", { className: "key" }, text); one.style.background = `rgba(${colour(name)}, .45)`; return one; };
    const shown = number(limit * unit, 2);
    return el("p", { className: "note" }, "Token log-ratio when it was trained on: ", chip("less", `−${shown} nats or less`), " ", chip("more", `+${shown} or more`), " (likelier than when sampled).");
  }

  async function searchAll() {
    if (!state.find) { status.textContent = "Write what to search for first."; find.focus(); return; }
    searchButton.disabled = true;
    const items = [];
    let found = 0;
    try {
      for (const i of stored) {
        for (const entry of stepsOf(i)) {
          status.textContent = `Searching ${runName(i)}, step ${entry.step} …`;
          const data = await part(entry.part);
          for (const group of data.groups) {
            const rows = rowsOf(data, group);
            if (!rows.length) continue;
            found += rows.length;
            if (items.length < MOST_HITS) items.push(el("li", {}, el("a", { href: address({ ...state, run: i, step: entry.step, problem: group.id, beside: "" }) },
              `${runName(i)}, step ${entry.step}, ${group.id}`), ` · ${rows.length} of ${group.rows[1] - group.rows[0]}: ${excerpt(data.columns.response[rows[0]])}`));
          }
        }
      }
    } finally {
      searchButton.disabled = false;
    }
    status.textContent = `${found} responses found${items.length === MOST_HITS ? `; the first ${MOST_HITS} groups are listed` : ""}.`;
    hits.replaceChildren(items.length ? el("ol", { className: "hits", tabIndex: 0, "aria-label": "Found" }, ...items) : "");
  }

  function excerpt(text) {
    const place = Math.max(0, text.toLowerCase().indexOf(state.find.toLowerCase()));
    const start = Math.max(0, place - 40);
    return `${start ? "…" : ""}${text.slice(start, place + 80)}${text.length > place + 80 ? "…" : ""}`;
  }

  function address(one) {
    const parts = new URLSearchParams({ run: runName(one.run), step: one.step, problem: one.problem });
    if (one.beside !== "") parts.set("beside", runName(Number(one.beside)));
    if (one.sort !== "reward") parts.set("sort", one.sort || "sampled");
    if (one.rising) parts.set("order", "rising");
    if (one.kinds.size < 3) parts.set("show", [...one.kinds].join(","));
    if (one.find) parts.set("find", one.find);
    return `#${parts}`;
  }
  // The address follows what is looked at from the first choice on; opening a page does not change it.
  let opened = false;
  function remember() {
    if (opened) history.replaceState(null, "", address(state));
    opened = true;
  }

  /** Follow a deep link; false where the address is none. What it asks for and is not there is said by `tellAbsent`. */
  function follow() {
    if (!location.hash.includes("=")) return false;
    const parts = new URLSearchParams(location.hash.slice(1));
    const index = stored.find((i) => runName(i) === parts.get("run"));
    linked = { run: parts.get("run"), step: parts.get("step") || null, problem: parts.get("problem") ?? "", ignored: [] };
    if (index === undefined) { snapStep(); return true; }
    const ignored = (key, value, known) => linked.ignored.push(`${key}=${value} is ignored: ${key} can be ${known.join(", ")}.`);
    const chosen = (key, known, standard) => {
      const value = parts.get(key) ?? standard;
      if (known.includes(value)) return value;
      ignored(key, value, known);
      return standard;
    };
    const twin = stored.find((i) => runName(i) === parts.get("beside"));
    if (twin === undefined && parts.get("beside")) linked.ignored.push(`No run ${parts.get("beside")} with rollouts is on this page to stand beside.`);
    const sorted = chosen("sort", Object.keys(SORTS).map((key) => key || "sampled"), "reward");
    // An empty list is a link to a page with nothing switched on.
    const asked = (parts.get("show") ?? Object.keys(KINDS).join(",")).split(",").filter(Boolean);
    const kinds = asked.filter((kind) => Object.hasOwn(KINDS, kind));
    if (kinds.length < asked.length) ignored("show", asked.filter((kind) => !kinds.includes(kind)).join(","), Object.keys(KINDS));
    Object.assign(state, {
      run: index, step: Number(parts.get("step")) || 0, problem: parts.get("problem") ?? "", beside: twin === undefined ? "" : String(twin),
      sort: sorted === "sampled" ? "" : sorted, rising: chosen("order", ["rising", "falling"], "falling") === "rising", find: parts.get("find") ?? "",
      kinds: new Set(asked.length && !kinds.length ? Object.keys(KINDS) : kinds),
    });
    snapStep();
    return true;
  }

  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const orders = Object.keys(SORTS);
    const keys = {
      j: () => movePrompt(1), k: () => movePrompt(-1), ".": () => moveStep(1), ",": () => moveStep(-1), "/": () => find.focus(),
      s: () => { state.sort = orders[(orders.indexOf(state.sort) + 1) % orders.length]; show(); },
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  addEventListener("hashchange", () => { if (follow()) show().then(() => section.scrollIntoView()).catch(trouble); });
  onColours(() => show().catch(trouble));
  const followed = follow();
  if (!followed) snapStep();
  return show().then(() => { if (followed) section.scrollIntoView(); });
}

/** Log-ratio, in stored units, at which the shade is full: 95 % of the group's tokens are within, LEAST_FULL at least; null where none is stored. */
function shadeLimit(ratios, [start, end], unit) {
  const all = (ratios ?? []).slice(start, end).flatMap((one) => one ?? []).map(Math.abs).sort((a, b) => a - b);
  return all.length ? Math.max(LEAST_FULL / unit, all[Math.floor(0.95 * (all.length - 1))]) : null;
}

function card(columns, row, place, limit, unit) {
  const get = (name) => (columns[name] ? columns[name][row] : undefined);
  const kinds = kindsOf(columns, row);
  const marks = kinds.map((kind) => el("span", { className: `mark ${kind}` }, kind));
  const low = get("clip_low_fraction"), high = get("clip_high_fraction");
  if (low > 0) marks.push(el("span", { className: "mark clip" }, low < 1 ? `clipped low ${number(100 * low, 2)} %` : "clipped low"));
  if (high > 0) marks.push(el("span", { className: "mark clip" }, high < 1 ? `clipped high ${number(100 * high, 2)} %` : "clipped high"));
  if (get("dual_clip_fraction") > 0) marks.push(el("span", { className: "mark clip" }, "dual clip"));
  if (get("in_batch") === false) marks.push(el("span", { className: "mark" }, "not trained on"));
  const facts = [["reward", number(get("reward"))], ["advantage", number(get("advantage"), 3)], ["length", `${number(get("response_length"))}`]];
  const add = (title, value) => { if (value !== null && value !== undefined && value !== "") facts.push([title, typeof value === "number" ? number(value) : value]); };
  add("accuracy", get("reward_accuracy"));
  add("format", get("reward_format"));
  add("overlong", get("reward_overlong"));
  for (const name of ["kimi_length", "lazy_length", "cosine_length", "gr3"]) add(name.replace("_", " "), get(`reward_${name}`));
  add("weight", get("loss_weight"));
  add("sequence ratio", typeof get("sequence_ratio") === "number" ? get("sequence_ratio").toFixed(5) : null);
  add("mini-batch", get("mini_batch"));
  add("read", get("extracted"));
  add("verdict", get("reason"));
  return el("article", { className: `card ${kinds[0]}`, "aria-label": `Response ${place}` },
    el("header", {}, el("span", {}, `#${place}`), ...marks),
    el("div", { className: "facts" }, ...facts.map(([title, value]) => el("span", {}, `${title} `, el("b", {}, value)))),
    ...responseView(get("response"), get("log_ratios"), get("pieces"), place, limit, unit));
}

function responseView(text, ratios, pieces, place, limit, unit) {
  const body = el("div", { className: "response", tabIndex: 0, role: "region", "aria-label": `Text of response ${place}` });
  const write = (length) => {
    const end = Math.min(length, text.length);
    let at = 0;
    body.replaceChildren();
    for (let i = 0; ratios && pieces && i < Math.min(pieces.length, MOST_SPANS) && at < end; i++) {
      const piece = text.slice(at, Math.min(end, at + pieces[i]));
      at += pieces[i];
      if (!piece) continue;
      const span = el("span", { title: `${(ratios[i] * unit).toFixed(4)} nats` }, piece);
      span.style.background = `rgba(${colour(ratios[i] > 0 ? "more" : "less")}, ${(0.55 * Math.min(1, Math.abs(ratios[i]) / limit)).toFixed(3)})`;
      body.append(span);
    }
    body.append(text.slice(Math.min(at, end), end));
    if (!text) body.append(el("i", {}, "(empty)"));
  };
  write(SHORT);
  if (text.length <= SHORT) return [body];
  const more = el("button", { type: "button", onclick: () => { write(Infinity); more.remove(); body.focus(); } }, `Show all ${text.length.toLocaleString("en-US")} characters`);
  return [body, more];
}
