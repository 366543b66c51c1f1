import assert from "node:assert/strict";
import { test } from "node:test";

import { Meter, median } from "../../../serve/web/meter.js";

/**
 * Draw a conversation: a character is 40 ms, `#` is speech and `.` is quiet. `[` and `]` in the third line are where the server begins and
 * ends a reply, `x` where it ends one that was interrupted.
 */
function converse(user, agent, server, noise = 0.001) {
  const meter = new Meter();
  const replies = [];
  const length = Math.max(user.length, agent.length, server.length) + 15; // and the quiet in which figures settle
  for (let i = 0; i < length; i++) {
    if (server[i] === "[") replies.push(meter.begin());
    if (server[i] === "]" || server[i] === "x") meter.finish(server[i] === "x");
    for (let block = 0; block < 4; block++) meter.push({ userRms: user[i] === "#" ? 0.1 : noise, agentPeak: agent[i] === "#" ? 0.3 : 0 });
  }
  return { meter, replies };
}

function close(actual, expected) {
  assert.ok(actual !== null && Math.abs(actual - expected) < 1e-6, `${actual} instead of ${expected}`);
}

test("response: from the user's last sound to the agent's first", () => {
  const { replies } = converse(
    "...#######..............................",
    "....................##########..........",
    "..............[..................]......",
  );
  assert.equal(replies.length, 1);
  close(replies[0].responseS, 10 * 0.04);
  close(replies[0].startS, 20 * 0.04);
  close(replies[0].endS, 30 * 0.04);
  assert.equal(replies[0].stopS, null);
  assert.ok(replies[0].settled && !replies[0].interrupted);
});

test("pauses inside a sentence end neither voice's turn", () => {
  const { replies, meter } = converse(
    "...###.....###..........................",
    "....................####.......####.....",
    "..............[..................]......",
  );
  assert.equal(meter.user.segments.length, 1);
  assert.equal(meter.agent.segments.length, 1);
  close(replies[0].responseS, 6 * 0.04);
  close(replies[0].endS, 35 * 0.04);
});

test("stop: from the onset of the interrupting user to the agent's last sound", () => {
  const { replies } = converse(
    "####..........................#########.........",
    "...............####################.............",
    "............[........................x..........",
  );
  assert.ok(replies[0].interrupted);
  close(replies[0].stopS, 5 * 0.04);
  close(replies[0].responseS, 11 * 0.04);
});

test("the server may say so before the sound ends, or long after", () => {
  for (const server of ["............[...................x............................", "............[....................................................x"]) {
    const { replies } = converse("####..........................#########......", "...............####################..........", server);
    close(replies[0].stopS, 5 * 0.04);
  }
});

test("a reply that the server has sent in a burst ends when its sound does", () => {
  const { replies } = converse("####....................................", "...........#########################....", "........[...]...........................");
  close(replies[0].endS, 36 * 0.04);
});

test("a user who goes on speaking after the stop has still begun where they began", () => {
  const { replies } = converse(
    "####................##.........................#########..........########",
    "...............####################################......................",
    "............[............................................................x",
  );
  close(replies[0].stopS, 4 * 0.04);
});

test("an agent that begins over the user and yields has no stop time: nobody interrupted it", () => {
  const { replies } = converse("####################..............", "...........########...............", ".........[..........x.............");
  assert.ok(replies[0].interrupted);
  assert.equal(replies[0].stopS, null);
});

test("a backchannel before it is not the interruption", () => {
  const { replies } = converse(
    "####..............##.........................########..........",
    "...............##################################..............",
    "............[....................................x.............",
  );
  close(replies[0].stopS, 4 * 0.04);
});

test("a user heard at the end of a whole answer has not interrupted it", () => {
  const { replies } = converse("####..........................#########", "...............####################......", "............[........................]");
  assert.equal(replies[0].stopS, null);
  assert.ok(!replies[0].interrupted);
});

test("an agent that speaks while the user does has no response time", () => {
  const { replies } = converse("####################....................", "............##########..................", "..........[................]");
  assert.equal(replies[0].responseS, null);
});

test("one user turn is answered once", () => {
  const { replies } = converse("#####...................................................", ".........####...............................####.........", "......[.......].......................[.........]......");
  close(replies[0].responseS, 4 * 0.04);
  assert.equal(replies[1].responseS, null);
});

test("a click is no voice", () => {
  const meter = new Meter();
  for (let i = 0; i < 200; i++) meter.push({ userRms: i % 50 < 2 ? 0.5 : 0, agentPeak: 0 });
  assert.equal(meter.user.segments.length, 0);
});

test("steady noise is no voice, and speech over it is", () => {
  const { meter } = converse(".".repeat(200) + "#####", "", "", 0.02);
  const late = meter.user.segments.filter((segment) => segment.startS > 5);
  assert.equal(late.length, 1);
  close(late[0].startS, 200 * 0.04);
});

test("what was noise before the microphone was muted is noise after it", () => {
  const meter = new Meter();
  const hear = (userRms, seconds) => {
    for (let i = 0; i < seconds * 100; i++) meter.push({ userRms, agentPeak: 0 });
  };
  hear(0.01, 10);
  const before = meter.user.segments.length; // the floor is not known at first
  hear(0, 9.5);
  hear(0.01, 5);
  assert.equal(meter.user.segments.length, before);
});

test("a reply without sound settles without figures", () => {
  const { replies } = converse("####................", "", "......[...]..");
  assert.ok(replies[0].settled);
  assert.equal(replies[0].startS, null);
});

test("a reply that the next one overtakes is settled", () => {
  const { replies } = converse("####........................", "........########............", "......[........][...........");
  assert.ok(replies[0].settled);
  close(replies[0].endS, 16 * 0.04);
});

test("memory of an hour is that of its last minutes", () => {
  const meter = new Meter();
  for (let i = 0; i < 360000; i++) meter.push({ userRms: i % 200 < 50 ? 0.1 : 0, agentPeak: 0 });
  assert.ok(meter.user.segments.length < 100, `${meter.user.segments.length}`);
});

test("median", () => {
  assert.equal(median([]), null);
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 3, 2]), 2.5);
});
