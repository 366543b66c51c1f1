import assert from "node:assert/strict";
import { test } from "node:test";

import { PlaybackBuffer } from "../../../serve/web/jitter.js";

const RATE_HZ = 24000;
const FRAME = 1920; // 80 ms, as the server sends
const BLOCK = 64; // as the audio thread pulls
const DELAY = 0.04 * RATE_HZ;

function loud(count = FRAME) {
  return new Float32Array(count).fill(0.5);
}

/** Play for some samples; frames arrive when the clock has passed their time. @returns the samples played */
function play(buffer, numSamples, arrivals = [], frame = loud) {
  const out = [];
  const piece = new Float32Array(BLOCK);
  for (let now = 0; now < numSamples; now += BLOCK) {
    while (arrivals.length > 0 && arrivals[0] <= now) {
      arrivals.shift();
      buffer.push(frame());
    }
    buffer.pull(piece);
    out.push(...piece);
  }
  return out;
}

function audible(samples) {
  return samples.filter((x) => Math.abs(x) > 0.25).length;
}

test("a reply begins one delay after its first chunk, and is whole", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  const out = play(buffer, 12 * FRAME, [0, 1, 2, 3, 4].map((i) => i * FRAME));
  const begin = out.findIndex((x) => x > 0.25);
  assert.ok(begin >= DELAY && begin <= DELAY + 2 * BLOCK, `${begin}`);
  assert.equal(audible(out.slice(begin, begin + 5 * FRAME)), 5 * FRAME);
  buffer.end();
  assert.equal(buffer.numUnderruns, 0);
});

test("pieces of any size come out in order, none lost", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  let next = 1;
  for (let size = 1; size < 300; size += 37) buffer.push(Float32Array.from({ length: size }, () => next++));
  const out = play(buffer, 2 * FRAME).slice(DELAY);
  const begin = out.indexOf(1);
  assert.deepEqual(out.slice(begin, begin + next - 1), Array.from({ length: next - 1 }, (_, i) => i + 1));
});

test("jitter below the delay makes no gap", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  const late = [0, 0.03, 0.001, 0.035, 0, 0.02, 0.034, 0.01].map((s, i) => i * FRAME + s * RATE_HZ);
  const out = play(buffer, 14 * FRAME, late);
  const begin = out.findIndex((x) => x > 0.25);
  assert.equal(audible(out.slice(begin, begin + 8 * FRAME)), 8 * FRAME);
  assert.equal(buffer.numUnderruns, 0);
});

test("audio that comes too late is counted, and the next reply waits longer; replies without a gap shorten that again", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  const out = play(buffer, 12 * FRAME, [0, FRAME, 2 * FRAME + 0.1 * RATE_HZ, 3 * FRAME]);
  buffer.end();
  assert.equal(buffer.numUnderruns, 1);
  const raised = buffer.delaySamples;
  assert.ok(raised > DELAY + 0.05 * RATE_HZ && raised < DELAY + 0.07 * RATE_HZ, `${raised}`);
  assert.ok(audible(out) >= 4 * FRAME); // all of it sounds, none is dropped
  for (let i = 0; i < 12; i++) {
    play(buffer, 4 * FRAME, [0, FRAME]);
    buffer.end();
  }
  assert.equal(buffer.numUnderruns, 1);
  assert.equal(buffer.delaySamples, DELAY);
});

for (const first of ["the end is told", "the sound runs dry"]) {
  test(`running dry at the end of a reply is no gap, when ${first} first`, () => {
    const buffer = new PlaybackBuffer(RATE_HZ);
    for (let reply = 0; reply < 3; reply++) {
      if (first === "the end is told") {
        buffer.push(loud());
        buffer.end();
        play(buffer, 4 * FRAME);
      } else {
        play(buffer, 4 * FRAME, [0]);
        buffer.end();
      }
    }
    assert.equal(buffer.numUnderruns, 0);
    assert.equal(buffer.delaySamples, DELAY);
  });
}

test("a sound that breaks off fades instead of clicking", () => {
  const out = play(new PlaybackBuffer(RATE_HZ), 4 * FRAME, [0]);
  const end = out.findLastIndex((x) => x === 0.5);
  const steps = out.slice(end).map((x, i, all) => (i ? all[i - 1] - x : 0));
  assert.ok(Math.max(...steps) < 0.02);
  assert.ok(out.at(-1) < 1e-3);
});

for (const drift of [200e-6, -200e-6]) {
  test(`a reply of 30 minutes, clocks ${drift * 1e6} ppm apart: no gap, and no more waiting than at first`, () => {
    const buffer = new PlaybackBuffer(RATE_HZ);
    const piece = new Float32Array(BLOCK * 2);
    let arrived = 0;
    let owed = 0;
    let most = 0;
    for (let now = 0; now < 1800 * RATE_HZ; now += BLOCK) {
      if (arrived <= now * (1 + drift)) {
        buffer.push(loud());
        arrived += FRAME;
      }
      owed += BLOCK * buffer.speed; // what a resampler at this speed would ask for
      const count = Math.floor(owed);
      owed -= count;
      buffer.pull(piece.subarray(0, count));
      most = Math.max(most, buffer.bufferedSamples);
    }
    assert.equal(buffer.numUnderruns, 0);
    assert.ok(most < DELAY + FRAME + 0.03 * RATE_HZ, `${most}`);
  });
}

test("after a stall, what came in a burst is caught up in the pauses, and speech is left whole", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  const numFrames = 60;
  // Every other frame is a pause; frames 10 to 19 arrive together, 0.8 s late.
  let index = 0;
  const frame = () => (index++ % 2 ? new Float32Array(FRAME) : loud());
  const arrivals = Array.from({ length: numFrames }, (_, i) => (i >= 10 && i < 20 ? 20 : i) * FRAME);
  const out = play(buffer, 90 * FRAME, arrivals, frame);
  assert.equal(buffer.numUnderruns, 1);
  assert.ok(buffer.skippedSamples > 0.3 * RATE_HZ, `${buffer.skippedSamples}`);
  const begin = out.findIndex((x) => x > 0.25);
  assert.ok(Math.abs(audible(out) - (numFrames / 2) * FRAME) < 0.01 * numFrames * FRAME, `${audible(out)} from ${begin}`);
});

test("clear forgets what waits", () => {
  const buffer = new PlaybackBuffer(RATE_HZ);
  buffer.push(loud());
  buffer.clear();
  assert.equal(buffer.bufferedSamples, 0);
  assert.equal(audible(play(buffer, 4 * FRAME)), 0);
});
