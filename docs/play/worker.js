// Holds the sessions, one per model, so that the page stays responsive while the network computes. One thread: no special headers are needed.
import * as ort from "./ort.wasm.bundle.min.mjs";

const sessions = {};

async function load(name, model) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const parts = [];
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    postMessage({ model, loaded: value.length });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const program = load("ort-wasm-simd-threaded.wasm", "shapes").then(({ buffer }) => {
  Object.assign(ort.env.wasm, { wasmBinary: buffer, numThreads: 1, proxy: false });
});
program.catch(() => {}); // whoever waits for it says so

async function open(model) {
  await program;
  const about = JSON.parse(new TextDecoder().decode(await load(`${model}/model.json`, model)));
  sessions[model] = await ort.InferenceSession.create(await load(`${model}/model.onnx`, model), { executionProviders: ["wasm"] });
  await sessions[model].run(feeds(zeros(about), about)); // the first run also lays out the memory: part of the loading
  postMessage({ model, about });
}

const zeros = about => Object.fromEntries(Object.entries(about.inputs).map(([name, shape]) => [name, Array(shape.at(-1) === "batch" ? 1 : shape.at(-1)).fill(0)]));

// What the graph calls an input -> a tensor. Labels are whole numbers of 64 bits, everything else is float32.
function tensor(name, values, about) {
  const data = name === "labels" ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
  const dims = name === "noise" ? [data.length / about.inputs.noise[1], about.inputs.noise[1]] : [data.length];
  return new ort.Tensor(name === "labels" ? "int64" : "float32", data, dims);
}

const feeds = (inputs, about) => Object.fromEntries(Object.keys(about.inputs).map(name => [name, tensor(name, inputs[name], about)]));

const reason = error => String(error.message || error);

async function draw({ id, model, inputs, about }) {
  try {
    const tensors = feeds(inputs, about), began = performance.now();
    const { images } = await sessions[model].run(tensors);
    postMessage({ id, images: images.data, milliseconds: performance.now() - began });
  } catch (error) {
    postMessage({ id, error: reason(error) });
  }
}

onmessage = ({ data }) => data.open ? open(data.open).catch(error => postMessage({ model: data.open, failed: reason(error) })) : draw(data);
