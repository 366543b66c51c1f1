/** The page: puts microphone, line, meter and view together. */

import { Sound } from "./audio.js";
import { Line } from "./line.js";
import { Meter } from "./meter.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";

const TOKEN_KEY = "duplex-token";
const SAMPLE = "/samples/question-1.wav";
const LEVEL_BLOCKS = 6; // of 10 ms, between one showing and the next
const PLAYBACK_BLOCKS = 50;

class App {
  #meter = new Meter();
  #view = new View({
    onTalk: () => this.#talk(),
    onSample: () => this.#ask(),
    onEnd: () => this.#end(),
    onRetry: () => this.#line.retry(),
    onToken: (token) => this.#enter(token),
  });
  #timeline = new Timeline(this.#view.canvas, this.#meter);
  #sound = new Sound({
    onHeard: (samples) => this.#line.append(samples),
    onLevels: (levels) => this.#measure(levels),
    onMicrophone: (state) => this.#microphoneChanged(state),
    onSuspended: (suspended) => this.#suspendedChanged(suspended),
  });
  #line = new Line({
    onState: (state, more) => this.#lineChanged(state, more),
    onOpen: () => this.#opened(),
    onReply: () => this.#replyBegan(),
    onAudio: (samples) => this.#sound.play(samples),
    onText: (text) => this.#reply && this.#view.write(this.#reply, text),
    onReplyEnd: (interrupted) => this.#replyEnded(interrupted),
    onEnd: () => this.#hungUp(),
  });
  #reply = null; // the one being written
  #measured = null; // the one whose figures are not final
  #microphone = "off";
  #muted = false;
  #suspended = false;
  #question = "none"; // none, waiting for the line, or asked
  #blocks = 0;
  #levelPeak = 0;
  #leastMs = Infinity;

  start() {
    this.#view.line(this.#line.state);
    this.#show();
  }

  get #hasMicrophone() {
    return this.#microphone === "on" || this.#microphone === "silent";
  }

  async #talk() {
    if (this.#suspended) return this.#sound.start();
    if (this.#hasMicrophone) {
      this.#muted = !this.#muted;
      this.#sound.mute(this.#muted);
      return this.#show();
    }
    await this.#sound.start();
    await this.#sound.listen();
  }

  async #ask() {
    this.#question = "waiting";
    this.#show();
    await this.#sound.start();
    if (this.#line.state === "live") this.#opened();
    else this.#call();
  }

  async #opened() {
    this.#view.card(this.#sound.outputLatencyS);
    if (this.#question !== "waiting") return;
    this.#question = "asked";
    this.#show();
    try {
      await this.#sound.ask(SAMPLE);
    } finally {
      this.#question = "none";
      this.#show();
    }
  }

  #end() {
    this.#line.close();
    this.#hungUp();
    this.#sound.stop();
    this.#question = "none";
    this.#muted = this.#suspended = false;
    this.#sound.mute(false);
    this.#show();
  }

  #enter(token) {
    sessionStorage.setItem(TOKEN_KEY, token);
    this.#call();
  }

  #call() {
    this.#line.open(sessionStorage.getItem(TOKEN_KEY) ?? "");
  }

  #microphoneChanged(state) {
    this.#microphone = state;
    if (state === "on") this.#call();
    this.#show();
  }

  #lineChanged(state, more) {
    this.#view.line(state, more);
    this.#show();
  }

  #suspendedChanged(suspended) {
    this.#suspended = suspended;
    this.#show();
  }

  #replyBegan() {
    const before = this.#measured;
    this.#reply = this.#measured = this.#meter.begin();
    if (before) this.#view.figures(before);
    this.#timeline.add(this.#reply);
    this.#view.begin(this.#reply);
  }

  #replyEnded(interrupted) {
    this.#sound.endReply();
    this.#meter.finish(interrupted);
    this.#reply = null;
  }

  #hungUp() {
    this.#sound.clear();
    this.#meter.finish(false);
    this.#reply = null;
  }

  #measure(levels) {
    this.#timeline.push(levels);
    if (this.#meter.push(levels)) {
      this.#view.figures(this.#measured);
      if (this.#measured.settled) this.#measured = null;
    }
    this.#levelPeak = Math.max(this.#levelPeak, levels.userPeak);
    if (this.#reply && this.#meter.agent.open) this.#leastMs = Math.min(this.#leastMs, levels.bufferedMs);
    this.#blocks++;
    if (this.#blocks % LEVEL_BLOCKS === 0) {
      this.#view.level(Math.sqrt(this.#levelPeak));
      this.#levelPeak = 0;
    }
    if (this.#blocks % PLAYBACK_BLOCKS === 0 && this.#leastMs < Infinity) {
      this.#view.playback({ ...levels, bufferedMs: this.#leastMs, numDropped: this.#line.numDropped });
      this.#leastMs = Infinity;
    }
  }

  /** The microphone's state, as it matters to the user. */
  get #heard() {
    if (this.#suspended) return "suspended";
    if (this.#question === "asked") return "sample";
    if (this.#hasMicrophone && this.#muted) return "muted";
    return this.#microphone === "on" && this.#line.state !== "live" ? "ready" : this.#microphone;
  }

  #show() {
    this.#view.microphone(this.#heard);
    this.#view.controls({
      running: this.#hasMicrophone || this.#line.state !== "off" || this.#question !== "none",
      hasMicrophone: this.#hasMicrophone,
      muted: this.#muted,
      suspended: this.#suspended,
      asking: this.#question !== "none",
    });
  }
}

new App().start();
