import assert from "node:assert/strict";
import { test } from "node:test";

import { Resampler } from "../../../serve/web/resample.js";

function tone(hz, rateHz, count) {
  return Float32Array.from({ length: count }, (_, i) => 0.5 * Math.sin((2 * Math.PI * hz * i) / rateHz));
}

/** Push in pieces of 128, as an audio thread does, and collect everything that comes out. */
function through(resampler, samples) {
  const out = [];
  const piece = new Float32Array(512);
  for (let i = 0; i < samples.length; i += 128) {
    resampler.push(samples.subarray(i, i + 128));
    for (let count; (count = resampler.pull(piece)) > 0; ) out.push(...piece.subarray(0, count));
  }
  return out;
}

function level(samples) {
  return Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
}

for (const [sourceHz, targetHz] of [[48000, 24000], [44100, 24000], [16000, 24000], [96000, 24000], [24000, 48000], [24000, 44100]]) {
  test(`${sourceHz} to ${targetHz} Hz: a tone comes out as itself, in place`, () => {
    const out = through(new Resampler(sourceHz, targetHz), tone(1000, sourceHz, sourceHz));
    const expected = tone(1000, targetHz, out.length);
    const settled = Math.round(0.01 * targetHz); // past the edge of the beginning
    const error = level(out.slice(settled).map((x, i) => x - expected[settled + i]));
    assert.ok(error < 5e-4, `error ${error}`);
    assert.ok(Math.abs(out.length - targetHz) < 0.002 * targetHz, `${out.length} samples`);
  });
}

test("what the lower rate cannot carry is gone, and does not come back folded", () => {
  const out = through(new Resampler(48000, 24000), tone(15000, 48000, 48000));
  assert.ok(level(out.slice(480)) < 1e-3);
});

test("pieces of any size give the same samples", () => {
  const input = tone(440, 44100, 8192);
  const whole = through(new Resampler(44100, 24000), input);
  const resampler = new Resampler(44100, 24000);
  const out = [];
  const piece = new Float32Array(7);
  for (let begin = 0, size = 1; begin < input.length; begin += size, size = (size * 5 + 3) % 301) {
    resampler.push(input.subarray(begin, begin + size));
    for (let count; (count = resampler.pull(piece)) > 0; ) out.push(...piece.subarray(0, count));
  }
  assert.ok(out.length > 4000 && whole.length > 4000);
  for (let i = 0; i < 4000; i++) assert.ok(Math.abs(out[i] - whole[i]) < 1e-6, `sample ${i}: ${out[i]} and ${whole[i]}`);
});

test("`missing` is exactly what the next samples need", () => {
  const resampler = new Resampler(24000, 44100);
  for (let i = 0; i < 50; i++) {
    const missing = resampler.missing(128);
    resampler.push(new Float32Array(missing - 1));
    const early = resampler.pull(new Float32Array(128));
    assert.ok(early < 128);
    resampler.push(new Float32Array(1));
    assert.equal(resampler.pull(new Float32Array(128 - early)), 128 - early);
  }
});

test("half a percent more speed consumes half a percent more", () => {
  const resampler = new Resampler(24000, 48000);
  resampler.speed = 1.005;
  let consumed = 0;
  const out = new Float32Array(128);
  for (let i = 0; i < 3000; i++) {
    const missing = resampler.missing(128);
    consumed += missing;
    resampler.push(new Float32Array(missing));
    resampler.pull(out);
  }
  const share = consumed / ((3000 * 128) / 2);
  assert.ok(Math.abs(share - 1.005) < 2e-4, `${share}`);
});
