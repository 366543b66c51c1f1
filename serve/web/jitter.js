/**
 * The agent's audio between the network and the loudspeaker. Pure: time passes as samples are pulled.
 *
 * chunk arrives   |####|    |####|        |####|
 * played               ####  ####...######        every reply begins `delaySamples` after its first chunk came
 */

const MIN_DELAY_S = 0.04;
const MAX_DELAY_S = 0.24;
const WINDOW_S = 0.5; // the surplus is the least that was buffered in this time
const STEER_S = 0.01; // a surplus or lack beyond this is made up by playing faster or slower
const STEER_SPEED = 0.005;
const SKIP_S = 0.06; // a surplus beyond this is made up by shortening pauses
const QUIET = 0.01; // peak of a pause
const CALM = 0.7; // the delay decays by this with every reply without a gap
const FADE = 0.97; // a sample, where the sound breaks off

export class PlaybackBuffer {
  #chunks = [];
  #offset = 0; // samples of the first chunk already played
  #rateHz;
  #playing = false;
  #waited = 0;
  #starvedSamples = -1; // pulled since it ran dry in the middle of a reply; -1 when it has not
  #ended = true; // the reply is complete
  #clean = true; // no gap in this reply
  #last = 0;
  #windowSamples = 0;
  #least = Infinity;
  #surplus = 0;

  /** Samples waiting to be played. */
  bufferedSamples = 0;
  /** How long a reply's first chunk waits; longer after a gap, shorter again after replies without one. */
  delaySamples;
  /** Times that a reply was interrupted by audio that came too late. */
  numUnderruns = 0;
  /** Samples of pauses left out to catch up. */
  skippedSamples = 0;
  /** How fast to play: 1, or a little beside it while a surplus or a lack is made up. */
  speed = 1;

  /** @param {number} rateHz of the samples pushed and pulled */
  constructor(rateHz) {
    this.#rateHz = rateHz;
    this.delaySamples = MIN_DELAY_S * rateHz;
  }

  /** A piece of the reply has arrived. @param {Float32Array} samples */
  push(samples) {
    if (this.#starvedSamples >= 0) {
      this.numUnderruns++;
      this.#clean = false;
      this.delaySamples = Math.min(MAX_DELAY_S * this.#rateHz, this.delaySamples + this.#starvedSamples);
      this.#starvedSamples = -1;
    }
    this.#ended = false;
    this.#chunks.push(samples);
    this.bufferedSamples += samples.length;
  }

  /** The reply is complete: what is buffered is its end, and running dry is no gap. */
  end() {
    this.#starvedSamples = -1;
    this.#ended = true;
    if (this.#clean) this.delaySamples = Math.max(MIN_DELAY_S * this.#rateHz, this.delaySamples * CALM);
    this.#clean = true;
  }

  /** Forget what is buffered. */
  clear() {
    this.#chunks = [];
    this.#offset = this.bufferedSamples = 0;
    this.end();
    this.#stop();
  }

  /** Fill `out`, with silence where there is nothing to play. */
  pull(out) {
    if (this.#starvedSamples >= 0) this.#starvedSamples += out.length;
    if (!this.#playing && !this.#mayBegin(out.length)) {
      this.#fade(out, 0);
      return;
    }
    this.#catchUp(out.length);
    const count = Math.min(out.length, this.bufferedSamples);
    this.#take(out, count);
    if (count < out.length) {
      this.#stop();
      if (!this.#ended) this.#starvedSamples = out.length - count;
      this.#fade(out, count);
    }
  }

  #mayBegin(count) {
    if (this.bufferedSamples === 0) return false;
    this.#playing = this.#waited >= this.delaySamples;
    this.#waited += count;
    return this.#playing;
  }

  #stop() {
    this.#playing = false;
    this.#waited = this.#surplus = this.#windowSamples = 0;
    this.#least = Infinity;
    this.speed = 1;
  }

  #fade(out, from) {
    for (let i = from; i < out.length; i++) out[i] = this.#last *= FADE;
  }

  #catchUp(count) {
    this.#least = Math.min(this.#least, this.bufferedSamples);
    this.#windowSamples += count;
    if (this.#windowSamples >= WINDOW_S * this.#rateHz) {
      this.#surplus = this.#least - this.delaySamples;
      const steer = STEER_S * this.#rateHz;
      this.speed = this.#surplus > steer ? 1 + STEER_SPEED : this.#surplus < -steer ? 1 - STEER_SPEED : 1;
      this.#windowSamples = 0;
      this.#least = Infinity;
    }
    while (this.#surplus > SKIP_S * this.#rateHz && this.#isQuiet(count)) {
      this.#drop(count);
      this.#surplus -= count;
      this.#least -= count;
      this.skippedSamples += count;
    }
  }

  /** Whether the next `count` samples are all there and quiet. */
  #isQuiet(count) {
    if (this.bufferedSamples < count) return false;
    let index = this.#offset;
    let chunk = 0;
    for (let i = 0; i < count; i++) {
      while (index >= this.#chunks[chunk].length) {
        index = 0;
        chunk++;
      }
      if (Math.abs(this.#chunks[chunk][index++]) > QUIET) return false;
    }
    return true;
  }

  #take(out, count) {
    let written = 0;
    while (written < count) {
      const part = this.#chunks[0].subarray(this.#offset, this.#offset + count - written);
      out.set(part, written);
      written += part.length;
      this.#drop(part.length);
    }
    if (count > 0) this.#last = out[count - 1];
  }

  #drop(count) {
    this.bufferedSamples -= count;
    this.#offset += count;
    while (this.#chunks.length > 0 && this.#offset >= this.#chunks[0].length) this.#offset -= this.#chunks.shift().length;
  }
}
