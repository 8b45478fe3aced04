// OpenAI's package for node: one body and one stream. Prints their bytes, and the status of a voice that is not there.
import OpenAI from "openai";

const [baseURL, apiKey, input] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const speech = { model: "tts-1", voice: "alloy", input };
const whole = await (await client.audio.speech.create(speech)).arrayBuffer();
let streamed = 0;
for await (const part of (await client.audio.speech.create({ ...speech, response_format: "pcm" })).body) {
  streamed += part.length;
}
const status = await client.audio.speech.create({ ...speech, voice: "bob" }).catch((error) => error.status);
console.log(JSON.stringify({ whole: whole.byteLength, streamed, status }));
