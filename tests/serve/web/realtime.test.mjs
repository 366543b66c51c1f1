import assert from "node:assert/strict";
import { test } from "node:test";

import { decodePcm, encodePcm } from "../../../serve/web/pcm.js";
import { RealtimeCall } from "../../../serve/web/realtime.js";
import { clockText, lineWords, secondsText } from "../../../serve/web/words.js";

class FakeSocket {
  static last;
  readyState = 1;
  bufferedAmount = 0;
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.last = this;
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  receive(event) {
    this.onmessage({ data: JSON.stringify(event) });
  }
}

function call(token = "") {
  const told = [];
  const names = ["onOpen", "onReply", "onAudio", "onText", "onReplyEnd", "onEnd"];
  const handlers = Object.fromEntries(names.map((name) => [name, (value) => told.push(value === undefined ? [name] : [name, value])]));
  const made = new RealtimeCall("ws://here/v1/realtime", token, handlers, FakeSocket);
  return { made, told, socket: FakeSocket.last };
}

test("samples survive the wire to one step of 16 bits, and clip at full scale", () => {
  const samples = Float32Array.from([0, 0.5, -0.5, 1, -1, 1.5, -1.5, 1e-5]);
  const back = decodePcm(encodePcm(samples));
  const expected = [0, 0.5, -0.5, 1, -1, 1, -1, 0];
  assert.equal(back.length, samples.length);
  back.forEach((x, i) => assert.ok(Math.abs(x - expected[i]) <= 1.5 / 32768, `${x} instead of ${expected[i]}`));
});

test("bytes are little endian", () => {
  assert.equal(encodePcm(Float32Array.from([1])), btoa("\xff\x7f"));
});

test("the token is offered as a protocol, never in the address", () => {
  assert.deepEqual(call("secret").socket.protocols, ["realtime", "openai-insecure-api-key.secret"]);
  assert.deepEqual(call().socket.protocols, ["realtime"]);
  assert.ok(!call("secret").socket.url.includes("secret"));
});

test("audio waits for the session", () => {
  const { made, told, socket } = call();
  made.append(new Float32Array(480));
  assert.equal(socket.sent.length, 0);
  socket.receive({ type: "session.created" });
  made.append(new Float32Array(480));
  assert.deepEqual(socket.sent.map((event) => event.type), ["session.update", "input_audio_buffer.append"]);
  assert.deepEqual(told, [["onOpen"]]);
});

test("a line that is too slow drops audio and counts it", () => {
  const { made, socket } = call();
  socket.receive({ type: "session.created" });
  socket.bufferedAmount = 1e6;
  made.append(new Float32Array(480));
  assert.equal(made.numDropped, 1);
  assert.equal(socket.sent.length, 1);
});

test("a reply, interrupted or not, and events that do not concern the page", () => {
  const { told, socket } = call();
  socket.receive({ type: "response.created", response: {} });
  socket.receive({ type: "response.output_item.added" });
  socket.receive({ type: "response.output_audio_transcript.delta", delta: " It" });
  socket.receive({ type: "response.done", response: { status: "cancelled" } });
  socket.receive({ type: "response.done", response: { status: "completed" } });
  assert.deepEqual(told, [["onReply"], ["onText", " It"], ["onReplyEnd", true], ["onReplyEnd", false]]);
});

test("the end carries the server's last error", () => {
  const { told, socket } = call();
  socket.receive({ type: "error", error: { code: "server_full", message: "All lines are busy." } });
  socket.onclose({ reason: "" });
  assert.deepEqual(told, [["onEnd", { opened: false, code: "server_full", message: "All lines are busy." }]]);
});

test("hanging up is silent", () => {
  const { made, told, socket } = call();
  made.close();
  assert.ok(socket.closed && socket.onclose === null);
  assert.deepEqual(told, []);
});

test("words", () => {
  assert.equal(lineWords("gone", { retryS: 4 }).detail.endsWith("Trying again in 4 s."), true);
  assert.equal(lineWords("refused", { message: "Too long." }).detail, "Too long.");
  assert.equal(secondsText(0.394), "0.39 s");
  assert.equal(secondsText(null), "–");
  assert.equal(clockText(65.9), "1:05");
});
