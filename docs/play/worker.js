// Holds the session, so that the page stays responsive while the network computes. One thread: no special headers are needed.
import * as ort from "./ort.wasm.bundle.min.mjs";

let session;

async function load(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const parts = [];
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    postMessage({ loaded: value.length });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function start() {
  const [program, graph, about] = await Promise.all([load("ort-wasm-simd-threaded.wasm"), load("model.onnx"), load("model.json")]);
  Object.assign(ort.env.wasm, { wasmBinary: program.buffer, numThreads: 1, proxy: false });
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const known = JSON.parse(new TextDecoder().decode(about));
  await session.run(feeds(zeros(known), known)); // the first run also lays out the memory: part of the loading
  postMessage({ about: known });
}

const zeros = about => Object.fromEntries(Object.entries(about.inputs).map(([name, shape]) => [name, Array(shape.at(-1) === "batch" ? 1 : shape.at(-1)).fill(0)]));

// What the graph calls an input -> a tensor. Labels are whole numbers of 64 bits, everything else is float32.
function tensor(name, values, about) {
  const data = name === "labels" ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
  const dims = name === "noise" ? [data.length / about.inputs.noise[1], about.inputs.noise[1]] : [data.length];
  return new ort.Tensor(name === "labels" ? "int64" : "float32", data, dims);
}

const feeds = (inputs, about) => Object.fromEntries(Object.keys(about.inputs).map(name => [name, tensor(name, inputs[name], about)]));

onmessage = async ({ data: { id, inputs, about } }) => {
  try {
    const tensors = feeds(inputs, about), began = performance.now();
    const { images } = await session.run(tensors);
    postMessage({ id, images: images.data, milliseconds: performance.now() - began });
  } catch (error) {
    postMessage({ id, error: String(error.message || error) });
  }
};

start().catch(error => postMessage({ failed: String(error.message || error) }));
