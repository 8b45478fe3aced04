// In the audio thread: what was received is played in order, and what a microphone hears is handed on.

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.waiting = [];
    this.place = 0;
    this.isOver = false;
    this.port.onmessage = ({ data }) => {
      if (data === "end") this.isOver = true;
      else if (data === "stop") { this.waiting = []; this.isOver = true; }
      else this.waiting.push(data);
    };
  }

  process(inputs, outputs) {
    const out = outputs[0][0];
    let filled = 0;
    while (filled < out.length && this.waiting.length) {
      const part = this.waiting[0].subarray(this.place, this.place + out.length - filled);
      out.set(part, filled);
      filled += part.length;
      this.place += part.length;
      if (this.place === this.waiting[0].length) { this.waiting.shift(); this.place = 0; }
    }
    if (filled < out.length && this.isOver) {
      this.port.postMessage("over");
      return false;
    }
    return true;
  }
}

class Recorder extends AudioWorkletProcessor {
  process(inputs) {
    if (inputs[0][0]) this.port.postMessage(inputs[0][0].slice());
    return true;
  }
}

registerProcessor("player", Player);
registerProcessor("recorder", Recorder);
