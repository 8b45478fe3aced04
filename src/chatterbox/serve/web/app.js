// The page: what is typed and chosen becomes a request for speech, and what comes back is heard while it comes.

import { RATE, decoder, draw, player, recorder, wav } from "./audio.js";
import { jobs } from "./jobs.js";

const $ = (id) => document.getElementById(id);
const SLIDERS = ["exaggeration", "cfg_weight", "temperature"];
const touched = new Set();
let speaking = null; // {abort, playing} of what is under way
let recorded = null;
let stopRecording = null;
const long = jobs({ list: $("jobs"), none: $("jobs-none"), ask, tell });

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(new URL(path, document.baseURI), { ...options, headers });
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

function body(format = "pcm") {
  const fields = { input: $("text").value, model: $("model").value, voice: $("voice").value, response_format: format };
  for (const name of SLIDERS) if (touched.has(name)) fields[name] = Number($(name).value);
  if ($("seed").value.trim()) fields.seed = Number($("seed").value);
  if ($("language").value.trim()) fields.language = $("language").value.trim();
  return JSON.stringify(fields);
}

async function speak() {
  stop();
  const own = (speaking = { abort: new AbortController(), playing: null });
  const parts = [];
  const started = performance.now();
  let first = null;
  $("stop").disabled = false;
  $("download").hidden = true;
  tell("Speaking…");
  try {
    own.playing = await player();
    const answer = await ask("v1/audio/speech", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: body(),
      signal: own.abort.signal,
    });
    const warning = answer.headers.get("x-chatterbox-warning");
    const reader = answer.body.getReader();
    const decode = decoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      first ??= (performance.now() - started) / 1000;
      const samples = decode(value);
      parts.push(samples);
      own.playing.push(samples.slice());
      draw($("wave"), parts);
      tell(`Speaking: ${seconds(parts)} s so far, first sound after ${first.toFixed(2)} s`);
    }
    own.playing.end();
    tell(`${seconds(parts)} s in ${((performance.now() - started) / 1000).toFixed(2)} s, first sound after ${first.toFixed(2)} s` +
      (warning ? `. ${warning}` : ""));
  } catch (error) {
    own.playing?.end();
    if (error.name === "AbortError") tell(`Stopped after ${seconds(parts)} s`);
    else if (parts.length) tell(`The connection was lost after ${seconds(parts)} s of speech; Speak says it again`, true);
    else tell(error instanceof TypeError ? "The server cannot be reached" : error.message, true);
  } finally {
    if (parts.length) offer(parts);
    if (speaking === own) {
      await own.playing?.over;
      if (speaking === own) { speaking = null; $("stop").disabled = true; }
    }
    showServer();
  }
}

function stop() {
  if (!speaking) return;
  speaking.abort.abort();
  speaking.playing?.stop();
  speaking = null;
  $("stop").disabled = true;
}

const seconds = (parts) => (parts.reduce((sum, part) => sum + part.length, 0) / RATE).toFixed(1);

function offer(parts) {
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(wav(parts));
  $("download").hidden = false;
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map(([id, title]) => new Option(title, id, false, id === chosen)));
}

async function showVoices(chosen = $("voice").value) {
  const { voices } = await (await ask(`v1/audio/voices?model=${encodeURIComponent($("model").value)}`)).json();
  fill($("voice"), voices.map(({ id, name }) => [id, name]), chosen);
}

async function showServer() {
  try {
    const about = await (await ask("info")).json();
    const rows = [["Version", about.version], ["Formats", about.formats.join(", ")], ["Requests now", about.streams]];
    for (const { name, cache } of about.models) {
      rows.push([name, `${Math.round(100 * cache.hit_rate)}% of prefixes from the cache, ` +
        `${(cache.saved_ms / 1000).toFixed(1)} s saved, ${(cache.bytes / 2 ** 20).toFixed(0)} MiB kept`]);
    }
    $("server").replaceChildren(...rows.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
  } catch (error) {
    $("server").replaceChildren(element("dt", "Unknown"), element("dd", error.message));
  }
}

function element(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

async function addVoice() {
  const recording = recorded ?? $("recording").files[0];
  if (!recording) return tell("Choose a recording, or record one", true);
  const form = new FormData();
  form.append("name", $("name").value);
  form.append("audio_sample", recording, "recording.wav");
  tell("Listening to the recording…");
  try {
    const voice = await (await ask("v1/audio/voices", { method: "POST", body: form })).json();
    await showVoices(voice.id);
    tell(`The voice ${voice.name} was added`);
    $("upload").reset();
    hear(null);
  } catch (error) {
    tell(error.message, true);
  }
}

async function removeVoice() {
  const voice = $("voice").value;
  if (!confirm(`Remove the voice ${voice}?`)) return;
  try {
    await ask(`v1/audio/voices/${encodeURIComponent(voice)}`, { method: "DELETE" });
    await showVoices();
    tell(`The voice ${voice} was removed`);
  } catch (error) {
    tell(error.message, true);
  }
}

async function keep() {
  try {
    $("jobs-part").open = true;
    await long.add(body("mp3"));
  } catch (error) {
    tell(error.message, true);
  }
}

async function record() {
  if (stopRecording) {
    hear(stopRecording());
    stopRecording = null;
  } else {
    try {
      stopRecording = await recorder();
    } catch (error) {
      return tell(`The microphone cannot be used: ${error.message}`, true);
    }
  }
  $("record").setAttribute("aria-pressed", String(Boolean(stopRecording)));
  $("record").textContent = stopRecording ? "End the recording" : "Record";
}

function hear(recording) {
  recorded = recording;
  URL.revokeObjectURL($("heard").src);
  $("heard").hidden = !recording;
  if (recording) $("heard").src = URL.createObjectURL(recording);
}

function showSliders() {
  for (const name of SLIDERS) $(name).nextElementSibling.value = touched.has(name) ? $(name).value : "–";
}

async function begin() {
  try {
    const { data } = await (await ask("v1/models")).json();
    fill($("model"), data.map(({ id }) => [id, id]), $("model").value);
    await showVoices();
    if ($("status").classList.contains("error")) tell("");
  } catch (error) {
    tell(error instanceof TypeError ? "The server cannot be reached" : error.message, true);
  }
  showServer();
}

$("speech").addEventListener("submit", (event) => { event.preventDefault(); speak(); });
$("speech").addEventListener("reset", (event) => {
  event.preventDefault();
  touched.clear();
  for (const name of SLIDERS) $(name).value = $(name).defaultValue;
  showSliders();
});
$("stop").addEventListener("click", () => { stop(); tell("Stopped"); });
$("upload").addEventListener("submit", (event) => { event.preventDefault(); addVoice(); });
$("keep").addEventListener("click", keep);
$("jobs-part").addEventListener("toggle", () => { if ($("jobs-part").open) long.look(); });
$("forget").addEventListener("click", removeVoice);
$("record").addEventListener("click", record);
$("recording").addEventListener("change", () => hear($("recording").files[0] ?? null));
$("model").addEventListener("change", () => showVoices().catch((error) => tell(error.message, true)));
$("key").addEventListener("change", begin);
for (const name of SLIDERS) $(name).addEventListener("input", () => { touched.add(name); showSliders(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("speech").requestSubmit();
  if (event.key === "Escape" && speaking) { stop(); tell("Stopped"); }
});
showSliders();
begin();
