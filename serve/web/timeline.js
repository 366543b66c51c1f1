/**
 * Both voices on one scrolling time axis.
 *
 *  you     |▂▅▇▅▂|            |▅▇▅|
 *                               ├─┤ stopped in 0.22 s
 *                 ├────┤ 0.39 s                        what was measured, between the lanes
 *  agent                 |▂▅▇▅▇▅▂▅▇▂//
 *          0:01      0:02      0:03
 */

import { BLOCK_S } from "./meter.js";
import { clockText, secondsText } from "./words.js";

const KEPT_BLOCKS = 15000; // 150 s
const DRAW_BLOCKS = 3; // 30 pictures a second
const BLOCKS_PER_BAR = 5;
const BAR_S = BLOCK_S * BLOCKS_PER_BAR;
const PIXELS_PER_S = 72;
const LEAST_S = 4.5;
const QUIET_DB = -46;
const LOUD_DB = -4;
const AXIS_HEIGHT = 22;
const MEASURE_HEIGHT = 40; // two rows: how fast the agent stopped, how fast it answered
const ROW_OFFSET = 9;
const LABEL_WIDTH = 64; // where the lanes' names stand, and the picture fades
const PAGE_S = 2; // scrolling without motion goes in pages

/** Height of a bar, 0..1, of a peak 0..1. */
function height(peak) {
  return Math.min(1, Math.max(0, (20 * Math.log10(peak + 1e-6) - QUIET_DB) / (LOUD_DB - QUIET_DB)));
}

export class Timeline {
  #canvas;
  #context;
  #peaks = { user: new Float32Array(KEPT_BLOCKS), agent: new Float32Array(KEPT_BLOCKS) };
  #count = 0;
  #meter;
  #replies = [];
  #colors = {};
  #size = { width: 0, height: 0 };
  #drawn = -1;

  /** @param {HTMLCanvasElement} canvas @param {import("./meter.js").Meter} meter */
  constructor(canvas, meter) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#meter = meter;
    this.#readColors();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#readColors());
    new ResizeObserver(() => this.#resize()).observe(canvas);
    const tick = () => {
      if (this.#drawn < 0 || this.#count - this.#drawn >= DRAW_BLOCKS) this.#draw();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** One block of both. */
  push({ userPeak, agentPeak }) {
    const index = this.#count++ % KEPT_BLOCKS;
    this.#peaks.user[index] = userPeak;
    this.#peaks.agent[index] = agentPeak;
  }

  /** A reply whose figures belong on the axis. @param {import("./meter.js").Reply} reply */
  add(reply) {
    this.#replies = [...this.#replies.slice(-50), reply];
  }

  #readColors() {
    const style = getComputedStyle(this.#canvas);
    for (const name of ["ink", "muted", "line", "paper", "user", "agent", "user-soft", "agent-soft"]) this.#colors[name] = style.getPropertyValue(`--${name}`);
    this.#colors.font = style.fontFamily;
    this.#drawn = -1;
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const ratio = devicePixelRatio || 1;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#size = { width, height };
    this.#drawn = -1;
  }

  #draw() {
    this.#drawn = this.#count;
    const { width, height } = this.#size;
    const spanS = Math.max(LEAST_S, width / PIXELS_PER_S);
    const nowS = this.#count * BLOCK_S;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const endS = Math.max(spanS * (1 - LABEL_WIDTH / width), still ? Math.ceil(nowS / PAGE_S) * PAGE_S : nowS);
    const laneHeight = (height - AXIS_HEIGHT - MEASURE_HEIGHT) / 2;
    const view = {
      beginS: endS - spanS,
      endS,
      nowS,
      x: (timeS) => ((timeS - (endS - spanS)) / spanS) * width,
      user: { top: 0, height: laneHeight },
      agent: { top: laneHeight + MEASURE_HEIGHT, height: laneHeight },
      middle: laneHeight + MEASURE_HEIGHT / 2,
    };
    this.#context.clearRect(0, 0, width, height);
    this.#drawAxis(view, height);
    for (const voice of ["user", "agent"]) {
      this.#drawBlocks(view, voice);
      this.#drawBars(view, voice);
    }
    this.#drawFigures(view);
  }

  #drawAxis(view, height) {
    const context = this.#context;
    const stepS = view.x(view.beginS + 1) < 48 ? 2 : 1;
    context.font = `12px ${this.#colors.font}`;
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    context.fillStyle = this.#colors.line;
    for (const { top, height: laneHeight } of [view.user, view.agent]) context.fillRect(0, Math.round(top + laneHeight / 2), this.#size.width, 1);
    context.fillRect(0, height - AXIS_HEIGHT, this.#size.width, 1);
    for (let s = Math.max(0, Math.ceil(view.beginS / stepS) * stepS); s <= view.endS; s += stepS) {
      const x = Math.round(view.x(s)) + 0.5;
      context.fillStyle = this.#colors.line;
      context.fillRect(x - 0.5, height - AXIS_HEIGHT, 1, 5);
      context.fillStyle = this.#colors.muted;
      const label = clockText(s);
      if (x < this.#size.width - 14) context.fillText(label, x, height - 5);
    }
  }

  #drawBlocks(view, voice) {
    const context = this.#context;
    const { top, height } = view[voice];
    context.fillStyle = this.#colors[`${voice}-soft`];
    for (const { startS, endS } of this.#meter[voice].segments) {
      if (endS < view.beginS) continue;
      context.beginPath();
      context.roundRect(view.x(startS) - 3, top + 2, view.x(endS) - view.x(startS) + 6, height - 4, 8);
      context.fill();
    }
  }

  #drawBars(view, voice) {
    const context = this.#context;
    const { top, height: laneHeight } = view[voice];
    const barWidth = Math.max(1.5, (view.x(view.beginS + BAR_S) * 2) / 3);
    const middle = top + laneHeight / 2;
    const segments = this.#meter[voice].segments.filter(({ endS }) => endS > view.beginS);
    const oldest = Math.max(0, this.#count - KEPT_BLOCKS);
    const last = Math.floor(this.#count / BLOCKS_PER_BAR);
    for (let bar = Math.max(0, Math.ceil(oldest / BLOCKS_PER_BAR), Math.floor(view.beginS / BAR_S)); bar < last; bar++) {
      let peak = 0;
      for (let i = 0; i < BLOCKS_PER_BAR; i++) peak = Math.max(peak, this.#peaks[voice][(bar * BLOCKS_PER_BAR + i) % KEPT_BLOCKS]);
      const timeS = bar * BAR_S;
      const speaks = segments.some(({ startS, endS }) => startS < timeS + BAR_S && timeS < endS);
      const size = height(peak) * (laneHeight - 16);
      if (size < 1.5) continue;
      context.fillStyle = speaks ? this.#colors[voice] : this.#colors.muted;
      context.globalAlpha = speaks ? 1 : 0.45;
      context.beginPath();
      context.roundRect(view.x(timeS + BAR_S / 2) - barWidth / 2, middle - size / 2, barWidth, size, barWidth / 2);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  #drawFigures(view) {
    for (const reply of this.#replies) {
      if (reply.startS === null || (reply.endS ?? view.nowS) < view.beginS) continue;
      if (reply.responseS !== null) this.#drawSpan(view, reply.startS - reply.responseS, reply.startS, secondsText(reply.responseS), ROW_OFFSET);
      if (reply.stopS !== null) this.#drawSpan(view, reply.endS - reply.stopS, reply.endS, `stopped in ${secondsText(reply.stopS)}`, -ROW_OFFSET);
      if (reply.interrupted && reply.endS !== null) this.#drawCut(view, reply.endS);
    }
  }

  /** A dimension line, with its text after it or, where that has no room, before it. */
  #drawSpan(view, fromS, toS, text, offset) {
    const context = this.#context;
    const [left, right, y] = [view.x(fromS), view.x(toS), view.middle + offset];
    context.strokeStyle = this.#colors.ink;
    context.lineWidth = 1;
    context.beginPath();
    for (const x of [left, right]) {
      context.moveTo(x, y - 5);
      context.lineTo(x, y + 5);
    }
    context.moveTo(left, y);
    context.lineTo(right, y);
    context.stroke();
    context.font = `600 12px ${this.#colors.font}`;
    const width = context.measureText(text).width;
    const follows = right + 8 + width < this.#size.width;
    const x = follows ? right + 8 : left - 8;
    context.textAlign = follows ? "left" : "right";
    context.textBaseline = "middle";
    context.fillStyle = this.#colors.ink;
    context.fillText(text, x, y + 0.5);
  }

  /** Two strokes where the agent broke off. */
  #drawCut(view, timeS) {
    const context = this.#context;
    const { top, height } = view.agent;
    context.strokeStyle = this.#colors.agent;
    context.lineWidth = 2.5;
    context.lineCap = "round";
    context.beginPath();
    for (const shift of [7, 13]) {
      context.moveTo(view.x(timeS) + shift - 4, top + height - 8);
      context.lineTo(view.x(timeS) + shift + 4, top + 8);
    }
    context.stroke();
    context.lineCap = "butt";
  }
}
