/** Everything of the page but the timeline: what is shown for a state, a reply, a figure. */

import { median } from "./meter.js";
import { clockText, lineWords, microphoneWords, secondsText } from "./words.js";

const element = (id) => document.getElementById(id);

/** Write only what is another text, so that nothing is read out twice. */
function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Show or hide; the focus does not vanish with what is hidden. */
function toggle(target, shown) {
  const focused = target.contains(document.activeElement);
  target.hidden = !shown;
  if (focused && !shown) element("talk").focus();
}

/** One reply's place in the list. */
class ReplyView {
  #item = document.createElement("li");
  #text = document.createElement("p");
  #facts = document.createElement("p");

  constructor(list) {
    this.#text.className = "text";
    this.#facts.className = "facts";
    this.#item.append(this.#text, this.#facts);
    list.append(this.#item);
  }

  write(text) {
    this.#text.textContent = (this.#text.textContent + text).trimStart();
  }

  /** @param {import("./meter.js").Reply} reply */
  show(reply) {
    if (reply.settled && !this.#text.textContent) return this.#item.remove();
    const facts = [];
    if (reply.startS !== null) facts.push(clockText(reply.startS));
    if (reply.responseS !== null) facts.push(`after ${secondsText(reply.responseS)}`);
    this.#facts.textContent = facts.join(" · ");
    if (!reply.interrupted) return;
    const cut = document.createElement("span");
    cut.className = "cut";
    cut.textContent = `interrupted${reply.stopS === null ? "" : `, stopped in ${secondsText(reply.stopS)}`}`;
    this.#facts.append(facts.length ? " · " : "", cut);
  }
}

export class View {
  #views = new Map();
  #responses = [];
  #stops = [];
  #playback = "";

  /**
   * @param {{onTalk: () => void, onSample: () => void, onEnd: () => void, onRetry: () => void, onToken: (token: string) => void}} actions
   */
  constructor(actions) {
    this.canvas = document.querySelector("#timeline canvas");
    element("talk").addEventListener("click", actions.onTalk);
    element("sample").addEventListener("click", actions.onSample);
    element("end").addEventListener("click", actions.onEnd);
    element("retry").addEventListener("click", actions.onRetry);
    element("token").addEventListener("submit", (event) => {
      event.preventDefault();
      actions.onToken(element("token-text").value.trim());
    });
  }

  /** @param {string} state of the line */
  line(state, more) {
    this.#state("line", lineWords(state, more));
    toggle(element("retry"), ["full", "gone", "refused"].includes(state));
    const asks = state === "token" || state === "wrong";
    const asked = !element("token").hidden;
    toggle(element("token"), asks);
    if (asks && !asked) element("token-text").focus();
  }

  microphone(state) {
    this.#state("microphone", microphoneWords(state));
  }

  /** What the buttons do now. @param {{running: boolean, hasMicrophone: boolean, muted: boolean, suspended: boolean, asking: boolean}} now */
  controls({ running, hasMicrophone, muted, suspended, asking }) {
    const talk = element("talk");
    write(talk.querySelector("span"), suspended ? "Resume" : !hasMicrophone ? "Start talking" : muted ? "Unmute" : "Mute");
    talk.classList.toggle("live", hasMicrophone);
    talk.classList.toggle("muted", hasMicrophone && muted);
    toggle(element("end"), running);
    element("sample").disabled = asking;
  }

  /** The microphone's level, 0..1. */
  level(share) {
    element("talk").style.setProperty("--level", share.toFixed(2));
  }

  begin(reply) {
    element("welcome").hidden = true;
    const list = element("replies");
    list.setAttribute("aria-busy", "true"); // read out whole, not token by token
    this.#views.set(reply, new ReplyView(list));
  }

  write(reply, text) {
    const stage = element("stage");
    const follows = stage.scrollHeight - stage.scrollTop - stage.clientHeight < 80;
    this.#views.get(reply).write(text);
    if (follows) stage.scrollTop = stage.scrollHeight;
  }

  /** A reply's figures are known, or some of them. */
  figures(reply) {
    this.#views.get(reply).show(reply);
    if (!reply.settled) return;
    element("replies").removeAttribute("aria-busy");
    this.#views.delete(reply);
    this.#figure("response", this.#responses, reply.responseS);
    this.#figure("stop", this.#stops, reply.stopS);
  }

  playback({ bufferedMs, numUnderruns, skippedMs, numDropped }) {
    const facts = [numUnderruns === 1 ? "1 gap" : `${numUnderruns || "no"} gaps`];
    if (skippedMs > 0) facts.push(`${Math.round(skippedMs)} ms caught up`);
    if (numDropped > 0) facts.push(`${numDropped} packets not sent`);
    const text = bufferedMs === null ? "–" : `${Math.round(bufferedMs)} ms`;
    const all = [text, ...facts].join();
    if (all === this.#playback) return;
    this.#playback = all;
    element("playback").textContent = text;
    element("playback-more").textContent = facts.join(", ");
  }

  card(latencyS) {
    element("card").textContent = latencyS > 0 ? `about ${Math.round(latencyS * 1000)} ms here` : "this browser does not tell it";
  }

  #state(id, { title, detail, tone }) {
    const section = element(id);
    const worsens = tone === "bad" && section.dataset.tone !== "bad";
    section.dataset.tone = tone;
    write(section.querySelector(".title"), title);
    write(section.querySelector(".detail"), detail);
    if (worsens) section.scrollIntoView({ block: "nearest" });
  }

  #figure(id, values, value) {
    if (value === null) return;
    values.push(value);
    element(id).textContent = secondsText(value);
    element(`${id}-more`).textContent = values.length === 1 ? "the first so far" : `median ${secondsText(median(values))} of ${values.length}`;
  }
}
