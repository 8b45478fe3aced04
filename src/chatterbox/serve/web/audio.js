// Samples: played while they arrive, drawn, recorded, and as a WAV file. Nothing here knows the server.

export const RATE = 24000;

let shared;

/** The page's audio context, at the rate of speech, with the worklets; made by the first click. */
async function context() {
  if (!shared) {
    shared = new AudioContext({ sampleRate: RATE });
    await shared.audioWorklet.addModule(new URL("worklets.js", import.meta.url));
  }
  await shared.resume();
  return shared;
}

/** What plays samples in their order. `over` is settled when all of them were heard. */
export async function player() {
  const audio = await context();
  const node = new AudioWorkletNode(audio, "player", { numberOfInputs: 0, outputChannelCount: [1] });
  const over = new Promise((resolve) => { node.port.onmessage = resolve; });
  node.connect(audio.destination);
  over.then(() => node.disconnect());
  return {
    over,
    push: (samples) => node.port.postMessage(samples),
    end: () => node.port.postMessage("end"),
    stop: () => node.port.postMessage("stop"),
  };
}

/** Records the microphone until the function that it gives is called, which gives a WAV. */
export async function recorder() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const audio = await context();
  const node = new AudioWorkletNode(audio, "recorder", { numberOfOutputs: 0 });
  const source = audio.createMediaStreamSource(stream);
  const parts = [];
  node.port.onmessage = ({ data }) => parts.push(data);
  source.connect(node);
  return () => {
    source.disconnect();
    stream.getTracks().forEach((track) => track.stop());
    return wav(parts);
  };
}

/** 16-bit little-endian bytes, of whatever cut, to samples: a byte that is over waits for the next. */
export function decoder() {
  let odd = new Uint8Array(0);
  return (bytes) => {
    const all = new Uint8Array(odd.length + bytes.length);
    all.set(odd);
    all.set(bytes, odd.length);
    const view = new DataView(all.buffer, 0, all.length & ~1);
    const samples = new Float32Array(view.byteLength / 2);
    for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
    odd = all.slice(view.byteLength);
    return samples;
  };
}

/** A file of samples. */
export function wav(parts) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(at, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

/** Draws the loudest samples of each column. */
export function draw(canvas, parts) {
  const width = canvas.width = canvas.clientWidth * devicePixelRatio;
  const height = canvas.height = canvas.clientHeight * devicePixelRatio;
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(canvas).getPropertyValue("--strong");
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const peaks = new Float32Array(width);
  let at = 0;
  for (const part of parts) {
    for (const sample of part) {
      const column = Math.floor((at++ * width) / count);
      peaks[column] = Math.max(peaks[column], Math.abs(sample));
    }
  }
  peaks.forEach((peak, x) => {
    const tall = Math.max(devicePixelRatio, peak * height);
    pen.fillRect(x, (height - tall) / 2, 1, tall);
  });
}
