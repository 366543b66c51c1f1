/** The audio thread: hears the microphone and plays the agent on one clock, and measures both as they pass. */

import { PlaybackBuffer } from "./jitter.js";
import { Resampler } from "./resample.js";

const WIRE_HZ = 24000;
const BATCH_SAMPLES = 480; // 20 ms: divides the model's frame of 80 ms, and keeps the messages few
const BLOCK_S = 0.01; // levels are measured over this

class Duplex extends AudioWorkletProcessor {
  #toWire = new Resampler(sampleRate, WIRE_HZ);
  #fromWire = new Resampler(WIRE_HZ, sampleRate);
  #playback = new PlaybackBuffer(WIRE_HZ);
  #batch = new Float32Array(BATCH_SAMPLES);
  #batched = 0;
  #wire = new Float32Array(0);
  #silence = new Float32Array(0);
  #blockSamples = Math.round(BLOCK_S * sampleRate);
  #counted = 0;
  #energy = 0;
  #userPeak = 0;
  #agentPeak = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.kind === "audio") this.#playback.push(data.samples);
      else if (data.kind === "end") this.#playback.end();
      else this.#playback.clear();
    };
  }

  process(inputs, outputs) {
    const out = outputs[0][0];
    if (this.#silence.length !== out.length) this.#silence = new Float32Array(out.length);
    const user = inputs[0][0] ?? this.#silence;
    this.#play(out);
    this.#hear(user);
    this.#measure(user, out);
    return true;
  }

  #play(out) {
    this.#fromWire.speed = this.#playback.speed;
    const missing = this.#fromWire.missing(out.length);
    if (this.#wire.length < missing) this.#wire = new Float32Array(missing);
    const piece = this.#wire.subarray(0, missing);
    this.#playback.pull(piece);
    this.#fromWire.push(piece);
    this.#fromWire.pull(out);
  }

  #hear(user) {
    this.#toWire.push(user);
    for (;;) {
      this.#batched += this.#toWire.pull(this.#batch.subarray(this.#batched));
      if (this.#batched < BATCH_SAMPLES) return;
      this.port.postMessage({ kind: "heard", samples: this.#batch }, [this.#batch.buffer]);
      this.#batch = new Float32Array(BATCH_SAMPLES);
      this.#batched = 0;
    }
  }

  #measure(user, agent) {
    for (let i = 0; i < agent.length; i++) {
      this.#energy += user[i] * user[i];
      this.#userPeak = Math.max(this.#userPeak, Math.abs(user[i]));
      this.#agentPeak = Math.max(this.#agentPeak, Math.abs(agent[i]));
      if (++this.#counted === this.#blockSamples) this.#report();
    }
  }

  #report() {
    const { bufferedSamples, numUnderruns, skippedSamples } = this.#playback;
    this.port.postMessage({
      kind: "levels",
      userRms: Math.sqrt(this.#energy / this.#counted),
      userPeak: this.#userPeak,
      agentPeak: this.#agentPeak,
      bufferedMs: (1000 * bufferedSamples) / WIRE_HZ,
      skippedMs: (1000 * skippedSamples) / WIRE_HZ,
      numUnderruns,
    });
    this.#counted = this.#energy = this.#userPeak = this.#agentPeak = 0;
  }
}

registerProcessor("duplex", Duplex);
