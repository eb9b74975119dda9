// Unpacking, and building elements. Text of runs and models reaches the page through text nodes only.

const unpacked = new Map();

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The JSON value of one part of the file; unpacked once. */
function part(name) {
  if (!unpacked.has(name)) {
    const element = document.querySelector(`script[data-part="${CSS.escape(name)}"]`);
    const stream = new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(name, new Response(stream).json());
  }
  return unpacked.get(name);
}

/** An element with properties and children; strings become text. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A labelled select of [value, text] pairs. */
function choice(title, pairs, value, changed) {
  const select = el("select", { onchange: () => changed(select.value) });
  fill(select, pairs, value);
  return { label: el("label", {}, title, select), select };
}

function fill(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => el("option", { value: key }, text)));
  select.value = String(value);
}

function tick(title, checked, changed) {
  const box = el("input", { type: "checkbox", checked, onchange: () => changed(box.checked) });
  return { label: el("label", { className: "inline" }, box, title), box };
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const DASH = "–";

/** A number for people: a dash where there is none. */
function number(value, digits = 4) {
  if (value === null || value === undefined) return DASH;
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** Plotly reads a few HTML tags in its texts: these are shown as written. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const redraws = [];
/** What has to be drawn again in other colours. */
function onColours(draw) {
  redraws.push(draw);
}

function layout(more) {
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, autosize: true,
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12.5, color: colour("text") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("dim"), activecolor: colour("accent") },
    margin: { l: 58, r: 12, t: 30, b: 46 },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") }, namelength: -1 },
    ...more,
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}

// The buttons by name: the library has one more, which sends a chart elsewhere.
const PLOT = {
  displaylogo: false, responsive: true, displayModeBar: "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]],
};

/** A short sample of a line in a variant's looks. */
function swatch(variant) {
  const image = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ width: 34, height: 8, "aria-hidden": "true" })) image.setAttribute(name, value);
  const dashes = variant.dash === "solid" ? "none" : variant.dash.replaceAll("px", "");
  for (const [name, value] of Object.entries({ x1: 0, x2: 34, y1: 4, y2: 4, "stroke-width": 2.6, "stroke-dasharray": dashes })) line.setAttribute(name, value);
  line.style.stroke = shownColour(variant.colour);
  image.append(line);
  return image;
}

/** Dark colours are lighter on a dark page. */
const LIGHTER = { "#000000": "#d8dce2", "#0072B2": "#4aaaff", "#D55E00": "#ff8c42", "#009E73": "#2fc79b" };
function shownColour(hex) {
  return (isDark() && LIGHTER[hex]) || hex;
}

function trouble(error) {
  const place = document.getElementById("trouble");
  place.hidden = false;
  place.textContent = `This page could not be drawn: ${error.message ?? error}`;
  console.error(error);
}
