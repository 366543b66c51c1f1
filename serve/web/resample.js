/** Streaming resampling of mono float samples by a windowed sinc, between any two rates; the speed may be steered while it runs. */

const ZERO_CROSSINGS = 16;
const PASSBAND = 0.92; // share of the lower Nyquist frequency that passes
const TABLE_STEPS = 256; // kernel values a source sample, between which it is interpolated
const MIN_CAPACITY = 4096;

/** Half of a symmetric kernel: value at distance i / TABLE_STEPS source samples, under a Blackman window. */
function halfKernel(cutoff, half) {
  const table = new Float32Array(half * TABLE_STEPS + 2);
  for (let i = 0; i <= half * TABLE_STEPS; i++) {
    const x = i / TABLE_STEPS;
    const phase = (Math.PI * x) / half;
    const window = 0.42 + 0.5 * Math.cos(phase) + 0.08 * Math.cos(2 * phase);
    const angle = Math.PI * cutoff * x;
    table[i] = cutoff * (angle === 0 ? 1 : Math.sin(angle) / angle) * window;
  }
  return table;
}

export class Resampler {
  #input = new Float32Array(MIN_CAPACITY);
  #length;
  #position;
  #step;
  #half;
  #kernel;

  /** The share by which the source runs faster than its rate says: 1.005 consumes half a percent more of it. */
  speed = 1;

  /** @param {number} sourceHz @param {number} targetHz */
  constructor(sourceHz, targetHz) {
    const cutoff = PASSBAND * Math.min(1, targetHz / sourceHz);
    this.#step = sourceHz / targetHz;
    this.#half = Math.ceil(ZERO_CROSSINGS / cutoff);
    this.#kernel = halfKernel(cutoff, this.#half);
    this.#length = this.#half; // silence before the first sample
    this.#position = this.#half;
  }

  /** Source samples by which the output lags. */
  get lag() {
    return this.#half;
  }

  /** Take source samples. */
  push(samples) {
    const consumed = Math.floor(this.#position) - this.#half;
    if (consumed > 0) {
      this.#input.copyWithin(0, consumed, this.#length);
      this.#length -= consumed;
      this.#position -= consumed;
    }
    if (this.#length + samples.length > this.#input.length) {
      const grown = new Float32Array(2 * (this.#length + samples.length));
      grown.set(this.#input.subarray(0, this.#length));
      this.#input = grown;
    }
    this.#input.set(samples, this.#length);
    this.#length += samples.length;
  }

  /** How many source samples must still be pushed before `count` target samples can be pulled. */
  missing(count) {
    const last = Math.floor(this.#position + (count - 1) * this.#step * this.speed);
    return Math.max(0, last + this.#half + 1 - this.#length);
  }

  /** Fill `out` from its beginning with what is ready. @returns {number} samples written */
  pull(out) {
    let written = 0;
    while (written < out.length && Math.floor(this.#position) + this.#half < this.#length) {
      out[written++] = this.#at(this.#position);
      this.#position += this.#step * this.speed;
    }
    return written;
  }

  #at(position) {
    const centre = Math.floor(position);
    let sum = 0;
    for (let i = centre - this.#half + 1; i <= centre + this.#half; i++) {
      const distance = Math.abs(position - i) * TABLE_STEPS;
      const index = Math.floor(distance);
      const value = this.#kernel[index];
      sum += this.#input[i] * (value + (this.#kernel[index + 1] - value) * (distance - index));
    }
    return sum;
  }
}
