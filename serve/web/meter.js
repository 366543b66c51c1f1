/**
 * Who spoke when, from the levels of both voices on one clock, and the two latencies of a conversation. Pure: time is counted in blocks.
 *
 * user    ######            ####
 * agent          #############
 *              ^^           ^^^
 *        response           stop
 */

export const BLOCK_S = 0.01;
const ONSET_BLOCKS = 4; // a voice begins where so many blocks are loud
const ONSET_WINDOW = 8; // among so many: a click is no voice
const HANG_S = { user: 0.3, agent: 0.4 }; // and ends after so much quiet
const KEPT_S = 150;
const AGENT_PEAK = 0.01;
const USER_RMS = 0.005; // the user is not heard below this in any case,
const USER_OVER_NOISE = 2.5; // nor below this multiple of the noise floor,
const NOISE_BLOCKS = 1000; // which is the tenth percentile of the last 10 s,
const NOISE_LEAST = 100; // known after 1 s
const NOISE_EVERY = 50;

/** Stretches of one voice. */
class Voice {
  #hangS;
  #recent = [];
  /** @type {{startS: number, endS: number, open: boolean}[]} oldest first */
  segments = [];

  constructor(hangS) {
    this.#hangS = hangS;
  }

  get last() {
    return this.segments.at(-1);
  }

  get open() {
    return this.last?.open ?? false;
  }

  push(loud, timeS) {
    if (this.open) {
      if (loud) this.last.endS = timeS + BLOCK_S;
      else if (timeS - this.last.endS >= this.#hangS) this.last.open = false;
      return;
    }
    this.#recent = this.#recent.filter((then) => timeS - then < (ONSET_WINDOW - 0.5) * BLOCK_S);
    if (!loud) return;
    this.#recent.push(timeS);
    if (this.#recent.length < ONSET_BLOCKS) return;
    this.segments.push({ startS: this.#recent[0], endS: timeS + BLOCK_S, open: true });
    this.#recent = [];
    while (timeS - this.segments[0].endS > KEPT_S) this.segments.shift();
  }
}

/** The level below which nobody speaks. */
class NoiseFloor {
  #levels = new Float32Array(NOISE_BLOCKS);
  #count = 0;
  threshold = USER_RMS;

  push(rms) {
    if (rms === 0) return; // muted
    this.#levels[this.#count++ % NOISE_BLOCKS] = rms;
    if (this.#count < NOISE_LEAST || this.#count % NOISE_EVERY) return;
    const sorted = this.#levels.slice(0, Math.min(this.#count, NOISE_BLOCKS)).sort();
    this.threshold = Math.max(USER_RMS, USER_OVER_NOISE * sorted[Math.floor(sorted.length / 10)]);
  }
}

/** One reply of the agent; times are null until they are known, and stay null where there was nothing to measure. */
export class Reply {
  /** When it became audible, and when it was last audible. */
  startS = null;
  endS = null;
  /** From the user's last sound to the agent's first, where the user had spoken and was done. */
  responseS = null;
  /** From the onset of the user who interrupts to the agent's last sound. */
  stopS = null;
  interrupted = false;
  /** No more audio will come. */
  done = false;
  /** Its figures are final. */
  settled = false;
}

export class Meter {
  #noise = new NoiseFloor();
  #blocks = 0;
  #reply = null;
  #doneS = 0;
  #answered = null;

  user = new Voice(HANG_S.user);
  agent = new Voice(HANG_S.agent);

  /** Seconds measured. */
  get nowS() {
    return this.#blocks * BLOCK_S;
  }

  /** The server begins a reply. @returns {Reply} */
  begin() {
    if (this.#reply) this.#settle();
    this.#reply = new Reply();
    return this.#reply;
  }

  /** The server has sent the whole of the current reply. */
  finish(interrupted) {
    if (!this.#reply) return;
    this.#reply.done = true;
    this.#reply.interrupted = interrupted;
    this.#doneS = this.nowS;
  }

  /** Take one block of both voices. @returns {boolean} whether a reply has new figures */
  push({ userRms, agentPeak }) {
    const timeS = this.nowS;
    this.#noise.push(userRms);
    this.user.push(userRms > this.#noise.threshold, timeS);
    this.agent.push(agentPeak > AGENT_PEAK, timeS);
    this.#blocks++;
    const reply = this.#reply;
    if (!reply) return false;
    if (reply.startS === null && this.agent.open) {
      this.#start(reply);
      return true;
    }
    if (!reply.done || this.agent.open || timeS - this.#doneS < HANG_S.agent) return false;
    this.#settle();
    return true;
  }

  #start(reply) {
    reply.startS = this.agent.last.startS;
    const before = this.user.segments.findLast((segment) => segment.startS < reply.startS);
    if (before && before !== this.#answered && before.endS <= reply.startS) reply.responseS = reply.startS - before.endS;
    this.#answered = before ?? null;
  }

  #settle() {
    const reply = this.#reply;
    this.#reply = null;
    reply.settled = true;
    if (reply.startS === null) return;
    reply.endS = this.agent.last.endS;
    if (!reply.interrupted) return;
    const over = this.user.segments.findLast((segment) => segment.startS < reply.endS);
    if (over && over.startS > reply.startS) reply.stopS = reply.endS - over.startS;
  }
}

/** Middle of some numbers, null of none. */
export function median(values) {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
