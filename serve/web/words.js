/** What the page says about its states: a title, and what it means or what to do. */

/** @typedef {{title: string, detail: string, tone: "calm" | "good" | "bad"}} Words */

const LINE = {
  off: ["calm", "Not connected", "It connects when you start talking."],
  connecting: ["calm", "Connecting", "Asking the server for a line."],
  live: ["good", "Connected", "The agent hears you all the time, also while it speaks."],
  full: ["bad", "All lines are busy", "The server talks to as many people as it can keep up with."],
  gone: ["bad", "The server is gone", "It was stopped, or the network is down. The agent will have forgotten this conversation."],
  token: ["bad", "The server wants a token", "Whoever started the server gave it one. It stays in this tab, and goes with it."],
  wrong: ["bad", "That token was not the right one", "Ask whoever started the server for it. It stays in this tab, and goes with it."],
  refused: ["bad", "The server refused the call", ""],
};

const MICROPHONE = {
  off: ["calm", "Microphone off", "Nothing is heard or sent."],
  asking: ["calm", "Waiting for the microphone", "The browser asks whether this page may use it: allow it."],
  ready: ["calm", "Microphone ready", "What you say is heard once the connection stands."],
  on: ["good", "Listening", "Speak whenever you like. Interrupt it, too."],
  muted: ["calm", "Muted", "The agent hears silence until you unmute."],
  sample: ["good", "Asking the sample question", "A recording speaks in your place."],
  refused: ["bad", "The microphone is refused", "Allow it for this page beside the address, then press “Start talking”. Or ask the sample question."],
  missing: ["bad", "No microphone found", "Plug one in: it is taken as soon as it is there. Or ask the sample question."],
  busy: ["bad", "The microphone is busy", "Another program may hold it: close that, then press “Start talking”. Or ask the sample question."],
  insecure: ["bad", "No microphone at this address", "Browsers give it to https pages and to localhost only: open the page there. Or ask the sample question."],
  silent: ["bad", "The microphone is silent", "No sound at all comes from it: look for a switch on it, or choose another in the system’s settings."],
  suspended: ["bad", "The browser has paused the sound", "It waits for you: press “Resume”."],
};

function words([tone, title, detail]) {
  return { tone, title, detail };
}

/**
 * @param {string} state a key of LINE
 * @param {{message?: string, retryS?: number}} more what the server said, and when the next try is
 * @returns {Words}
 */
export function lineWords(state, { message = "", retryS = 0 } = {}) {
  const said = words(LINE[state]);
  const parts = [message || said.detail];
  if (retryS > 0) parts.push(`Trying again in ${retryS} s.`);
  return { ...said, detail: parts.join(" ") };
}

/** @param {string} state a key of MICROPHONE @returns {Words} */
export function microphoneWords(state) {
  return words(MICROPHONE[state]);
}

/** `0.39 s`, or a dash for null. */
export function secondsText(seconds) {
  return seconds === null ? "–" : `${seconds.toFixed(2)} s`;
}

/** `1:05`. */
export function clockText(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
