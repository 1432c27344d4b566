"use strict";
// The page around the model: it reads the controls, draws the noise, asks the worker for pictures and shows them.

const COUNT = 8; // pictures of the first view
const MEAN_WEIGHTS = [0, 1, 2, 4, 8], VAR_WEIGHTS = [0, 0.5, 1, 2, 4]; // columns and rows of the tables
// What is different from model to model. A pass holds the browser's attention: as many pictures in one as take half a second or so.
const DRAWING = {
  shapes: { label: "star", mean_weight: 3, var_weight: 0, together: 10 },
  cifar10: { label: "horse", mean_weight: 2, var_weight: 2, together: 2 },
};
const REMEMBERED = 9; // passes whose time is kept for the median

const element = id => document.getElementById(id);
const chosen = name => document.querySelector(`input[name="${name}"]:checked`).value;
const plain = value => String(Math.round(value * 100) / 100);

// ---- noise: mulberry32 gives uniform numbers, Box and Muller's formula makes two normal ones of two of them

function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function normal(seed, count) {
  const uniform = mulberry32(seed), out = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform(); // 1 - u is never 0
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

// ---- the worker, as two functions: from a model's name to what it is, and from inputs to images

let worker;
const opening = {}, waiting = new Map();
let asked = 0;

function startWorker() {
  worker = new Worker("play/worker.js", { type: "module" });
  worker.onerror = event => Object.values(opening).forEach(({ reject }) => reject(new Error(event.message || "play/worker.js could not be loaded")));
  worker.onmessage = ({ data }) => {
    if (data.model) {
      const { resolve, reject, progress } = opening[data.model];
      return data.failed ? reject(new Error(data.failed)) : data.about ? resolve(data.about) : progress(data.loaded);
    }
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    data.error ? reject(new Error(data.error)) : resolve(data);
  };
}

// progress: called with the number of bytes that have come so far
function open(model, progress) {
  let loaded = 0;
  return new Promise((resolve, reject) => {
    opening[model] = { resolve, reject, progress: bytes => progress(loaded += bytes) };
    worker.postMessage({ open: model });
  });
}

function run(inputs, { model, about }) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, inputs, model, about });
  });
}

// ---- from the controls to the graph's inputs

const models = {}; // those that have been loaded: what their model.json says
let given = null; // noise from elsewhere, for tests

function settings() {
  const value = id => Number(element(id).value), model = chosen("model");
  return { model, about: models[model], view: chosen("view"), label: Number(chosen("class")), mean_weight: value("mean_weight"), var_weight: value("var_weight"), temperature: value("temperature"), depth: value("depth"), seed: value("seed") };
}

// How many numbers the first layers of a picture take; they stand at its beginning.
function noiseOf(layers, about) {
  return about.noise_shapes.slice(0, layers).reduce((sum, [c, h, w]) => sum + c * h * w, 0);
}

// first: which of the eight pictures comes first; tables have one noise throughout
function inputs({ about, ...wish }, labels, mean, variance, first) {
  const total = about.inputs.noise[1], all = given || normal(wish.seed, COUNT * total), values = new Float32Array(labels.length * total);
  const kept = noiseOf(wish.depth, about); // the layers after it get zeros: they take their prior's mean
  labels.forEach((_, i) => {
    const start = wish.view === "eight" ? (first + i) * total : 0;
    values.set(all.subarray(start, start + kept), i * total);
  });
  return {
    noise: values, labels,
    temperature: about.resolutions.map(() => wish.temperature),
    mean_weight: about.resolutions.map(() => mean), var_weight: about.resolutions.map(() => variance),
  };
}

const nameOf = (label, about) => about.classes[label] || "no class";

// ---- pictures

function paint(canvas, values, description) {
  const size = canvas.width, pixels = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * i + channel] = Math.round((values[channel * size * size + i] + 1) * 127.5);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.setAttribute("aria-label", description);
}

function canvas(size) {
  const made = document.createElement("canvas");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", "not drawn yet");
  made.width = made.height = size;
  return made;
}

const times = []; // milliseconds per picture

// The canvases of a view, row by row; they are made anew only where another view is wanted, so that nothing flickers.
let shown = { model: null, view: null, canvases: [] };

function canvasesFor({ model, view, about }, rows) {
  if (shown.model === model && shown.view === view) return shown.canvases;
  const box = element("canvases");
  let canvases;
  if (view === "eight") {
    canvases = [Array.from({ length: COUNT }, () => canvas(about.size))];
    const grid = document.createElement("div");
    grid.className = "eight";
    grid.append(...canvases[0]);
    box.replaceChildren(grid);
  } else {
    const table = document.createElement("table"), head = table.createTHead().insertRow();
    table.createCaption().textContent = `Mean weight to the right, ${view === "classes" ? "class" : "variance weight"} downwards; one noise throughout`;
    const heading = (row, text, scope) => row.appendChild(Object.assign(document.createElement("th"), { textContent: text, scope }));
    heading(head, view === "classes" ? "class" : "variance", "col").className = "corner";
    MEAN_WEIGHTS.forEach(weight => heading(head, weight, "col"));
    const body = table.createTBody();
    canvases = rows.map(name => {
      const row = body.insertRow();
      heading(row, name, "row");
      return MEAN_WEIGHTS.map(() => row.insertCell().appendChild(canvas(about.size)));
    });
    box.replaceChildren(table);
  }
  shown = { model, view, canvases };
  times.length = 0; // passes of another view have another number of pictures, and those of another model another work
  return canvases;
}

// Draws pictures with the same weights, some at a time, and shows each as show(values, i). Stops where settings have changed: the rest is of no use.
async function draw(wish, labels, mean, variance, show) {
  const { together } = DRAWING[wish.model];
  for (let first = 0; first < labels.length && !wanted; first += together) {
    const some = labels.slice(first, first + together);
    const asked = inputs(wish, some, mean, variance, first), { images, milliseconds } = await run(asked, wish);
    times.push(milliseconds / some.length);
    times.splice(0, times.length - REMEMBERED);
    last.push({ ...asked, images });
    const length = images.length / some.length;
    some.forEach((_, i) => show(images.subarray(i * length, (i + 1) * length), first + i));
  }
}

async function drawEight(wish) {
  const [row] = canvasesFor(wish), { label, about, mean_weight: mean, var_weight: variance } = wish;
  await draw(wish, Array(COUNT).fill(label), mean, variance, (values, i) => paint(row[i], values, `${nameOf(label, about)}, picture ${i + 1} of ${COUNT}, mean weight ${plain(mean)}, variance weight ${plain(variance)}`));
}

async function drawTable(wish) {
  const { about } = wish, classes = wish.view === "classes", labels = classes ? about.classes.map((_, i) => i) : [wish.label];
  const canvases = canvasesFor(wish, classes ? about.classes : VAR_WEIGHTS.map(plain));
  for (const [column, mean] of MEAN_WEIGHTS.entries()) {
    for (const [row, variance] of (classes ? [wish.var_weight] : VAR_WEIGHTS).entries()) {
      await draw(wish, labels, mean, variance, (values, i) => paint(canvases[row + i][column], values, `${nameOf(labels[i], about)}, mean weight ${plain(mean)}, variance weight ${plain(variance)}`));
    }
  }
}

// ---- one drawing at a time; what was wanted in the meantime, and only the latest of it, comes next

let wanted = false, busy = false, last = [];

async function redraw() {
  describe();
  wanted = true;
  if (busy) return;
  busy = true;
  try {
    while (wanted) {
      wanted = false;
      last = [];
      const wish = settings();
      await (wish.view === "eight" ? drawEight(wish) : drawTable(wish));
    }
    announce();
  } catch (error) {
    fail(`The model stopped: ${error.message}. Load the page again.`);
  } finally {
    busy = false;
  }
}

function announce() {
  const sorted = [...times].sort((a, b) => a - b), median = sorted[Math.floor(sorted.length / 2)];
  const passes = sorted.length > 1 ? `median of the last ${sorted.length} passes` : "one pass so far; the first ones are slower, while the browser still compiles";
  element("time").firstChild.data = `${median.toFixed(median < 10 ? 1 : 0)} ms per picture (${passes}), on one thread of WebAssembly.`;
}

// Write the values beside the sliders, and take out of play what the view decides for itself.
function describe() {
  const wish = settings(), { about } = wish, text = id => document.querySelector(`output[for="${id}"]`);
  for (const id of ["mean_weight", "var_weight", "temperature"]) text(id).value = plain(wish[id]);
  const resolution = about.noise_shapes[wish.depth - 1]?.[1];
  text("depth").value = wish.depth ? `${wish.depth} of ${about.noise_shapes.length} (${resolution} × ${resolution})` : "0 (no noise)";
  element("depth").setAttribute("aria-valuetext", text("depth").value);
  element("classes").disabled = wish.view === "classes";
  for (const [box, off] of [["mean", wish.view !== "eight"], ["var", wish.view === "weights"]]) {
    element(box).classList.toggle("off", off);
    element(box).querySelector("input").disabled = off;
  }
}

function fail(text) {
  element("message").textContent = text;
  element("time").firstChild.data = "";
  element("all").disabled = true;
}

// ---- one model after the other

// Make the controls those of the chosen model: its classes and layers, and weights that suit it.
function offer() {
  const model = chosen("model"), about = models[model], start = DRAWING[model];
  const buttons = [...about.classes, "no class"].map((name, label) => {
    const box = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "class", value: label, checked: name === start.label });
    text.textContent = name;
    box.append(input, text);
    return box;
  });
  element("classes").replaceChildren(element("classes").firstChild, ...buttons);
  element("depth").max = about.noise_shapes.length; // before the value, which it bounds
  element("depth").value = about.noise_shapes.length;
  for (const id of ["mean_weight", "var_weight"]) element(id).value = start[id];
}

let loading = false;

async function loadPhotographs() {
  if (loading) return;
  loading = true;
  const button = element("load"), total = Number(button.dataset.bytes), mega = bytes => (bytes / 1e6).toFixed(1);
  const progress = bytes => {
    element("progress").value = bytes;
    element("loaded").textContent = bytes < total ? `${mega(bytes)} of ${mega(total)} MB` : "preparing";
  };
  progress(0);
  element("problem").textContent = "";
  element("loading").hidden = false;
  button.setAttribute("aria-disabled", "true"); // not disabled, which would lose the place of a reader with a keyboard
  try {
    models.cifar10 = await open("cifar10", progress);
    element("photographs").hidden = false;
    const choice = element("photographs").querySelector("input"), here = document.activeElement === button;
    choice.checked = true;
    button.hidden = true;
    if (here) choice.focus();
    offer();
    redraw();
  } catch (error) {
    element("problem").textContent = `The photographs could not be loaded (${error.message}). See whether you are online, and press the button again. Shapes go on without them. Photographs without a browser: cfvae sample cifar10 --mean-weight 2 --var-weight 2 --out samples.png`;
  } finally {
    element("loading").hidden = true;
    button.removeAttribute("aria-disabled");
    loading = false;
  }
}

// ---- beginning

function prepare() {
  offer();
  element("models").addEventListener("input", offer); // before the drawing, which the form listens for
  element("controls").addEventListener("input", redraw);
  element("controls").addEventListener("submit", event => event.preventDefault());
  element("load").addEventListener("click", loadPhotographs);
  element("another").addEventListener("click", () => {
    element("seed").value = (Number(element("seed").value) + 1) % 1000000;
    redraw();
  });
  element("all").disabled = false;
}

async function begin() {
  try {
    const mode = localStorage.getItem("mode"); // what the switch of the site's other pages has left there
    if (mode === "light" || mode === "dark") document.documentElement.dataset.theme = mode;
  } catch { /* storage is switched off: the system's choice it is */ }
  element("message").textContent = "";
  const instead = "The same pictures without a browser: cfvae sample shapes --mean-weight 2 --out samples.png";
  if (typeof WebAssembly !== "object") return fail(`This page needs WebAssembly, and this browser has none, or it is switched off. ${instead}`);
  if (location.protocol === "file:") return fail("This page was opened as a file, and browsers let no such page load a model. In its folder run python -m http.server --bind 127.0.0.1, and open http://127.0.0.1:8000/play.html.");
  try {
    startWorker();
    models.shapes = await open("shapes", bytes => { element("time").firstChild.data = `Loading the model and what runs it: ${(bytes / 1e6).toFixed(1)} MB so far.`; });
  } catch (error) {
    return fail(`The model could not be loaded (${error.message}). Load the page again. ${instead}`);
  }
  prepare();
  await redraw();
}

// For tests: noise from outside (8 pictures end to end; null gives it back to the seed), and what the last drawing was made of and gave.
window.cfvae = { normal, ready: begin(), setNoise: values => { given = values && Float32Array.from(values); return redraw(); }, get last() { return last; }, get busy() { return busy; } };
