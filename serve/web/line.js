/** Keeps a call up: says in which state it is, and tries again where that may help. */

import { RealtimeCall } from "./realtime.js";

const RETRY_S = [1, 2, 4, 8, 15];
const FULL_RETRY_S = 10;

/** Why a call ended. A browser does not tell a page why a WebSocket was refused, so the same address is asked once more by plain HTTP. */
async function diagnose({ opened, code, message }, token) {
  if (code) return { state: code === "server_full" ? "full" : "refused", message };
  if (opened) return { state: "gone", message: "" };
  try {
    const { status } = await fetch("/v1/realtime", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
    if (status === 401) return { state: token ? "wrong" : "token", message: "" };
    if (status === 503) return { state: "full", message: "" };
    return { state: status === 403 ? "refused" : "gone", message: "" };
  } catch {
    return { state: "gone", message: "" };
  }
}

/**
 * @typedef {import("./realtime.js").Handlers & {onState: (state: string, more: {message: string, retryS: number}) => void}} Handlers
 * `onState`'s states are those of `lineWords`
 */

export class Line {
  #handlers;
  #call = null;
  #token = "";
  #attempts = 0;
  #timer = 0;
  /** off, connecting, live, full, gone, token, wrong or refused. */
  state = "off";

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    addEventListener("online", () => this.state === "gone" && this.retry());
    document.addEventListener("visibilitychange", () => !document.hidden && this.state === "gone" && this.retry());
  }

  /** Call the server; nothing happens while a call is up. @param {string} token empty for none */
  open(token) {
    this.#token = token;
    if (this.state !== "live" && this.state !== "connecting") this.retry();
  }

  /** Call again now. */
  retry() {
    clearTimeout(this.#timer);
    this.#call?.close();
    this.#tell("connecting");
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.#call = new RealtimeCall(url.href, this.#token, {
      ...this.#handlers,
      onOpen: () => {
        this.#attempts = 0;
        this.#tell("live");
        this.#handlers.onOpen();
      },
      onEnd: (end) => this.#ended(end),
    });
  }

  /** Batches of audio that this call's connection was too slow for. */
  get numDropped() {
    return this.#call?.numDropped ?? 0;
  }

  append(samples) {
    this.#call?.append(samples);
  }

  /** Hang up. */
  close() {
    clearTimeout(this.#timer);
    this.#call?.close();
    this.#call = null;
    this.#attempts = 0;
    this.#tell("off");
  }

  #tell(state, message = "", retryS = 0) {
    this.state = state;
    this.#handlers.onState(state, { message, retryS });
  }

  async #ended(end) {
    this.#call = null;
    this.#handlers.onEnd(end);
    const { state, message } = await diagnose(end, this.#token);
    if (this.#call || this.state === "off") return; // called again, or hung up, meanwhile
    const retryS = state === "gone" ? RETRY_S[Math.min(this.#attempts++, RETRY_S.length - 1)] : state === "full" ? FULL_RETRY_S : 0;
    this.#tell(state, message, retryS);
    if (retryS > 0) this.#timer = setTimeout(() => this.retry(), retryS * 1000);
  }
}
