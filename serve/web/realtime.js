/** One call in the events of the OpenAI Realtime protocol, as far as a conversation by voice needs them. */

import { decodePcm, encodePcm } from "./pcm.js";

const MAX_BUFFERED_BYTES = 128 * 1024; // 2 s of audio on the wire; a line that is slower drops audio instead of falling behind
const PCM = { format: { type: "audio/pcm", rate: 24000 } };

/**
 * @typedef {object} Handlers
 * @property {() => void} onOpen the server takes audio
 * @property {() => void} onReply the agent begins a reply
 * @property {(samples: Float32Array) => void} onAudio 24 kHz
 * @property {(text: string) => void} onText
 * @property {(interrupted: boolean) => void} onReplyEnd
 * @property {(end: {opened: boolean, code: string, message: string}) => void} onEnd once; `code` and `message` are the server's, or empty
 */

export class RealtimeCall {
  #socket;
  #handlers;
  #opened = false;
  #error = { code: "", message: "" }; // of the last event, where that was an error
  /** Batches of audio that the line was too slow for. */
  numDropped = 0;

  /** @param {string} url @param {string} token empty for none @param {Handlers} handlers */
  constructor(url, token, handlers, Socket = WebSocket) {
    this.#handlers = handlers;
    // A browser cannot set headers on a WebSocket: the token travels as OpenAI's own clients in a browser send it, never in the address.
    this.#socket = new Socket(url, token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"]);
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = ({ reason }) => this.#end(reason);
  }

  /** Send what the microphone heard. @param {Float32Array} samples 24 kHz */
  append(samples) {
    if (!this.#opened || this.#socket.readyState !== 1) return;
    if (this.#socket.bufferedAmount > MAX_BUFFERED_BYTES) this.numDropped++;
    else this.#send({ type: "input_audio_buffer.append", audio: encodePcm(samples) });
  }

  /** Hang up, without a word to the handlers. */
  close() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  #send(event) {
    this.#socket.send(JSON.stringify(event));
  }

  #end(reason) {
    this.#handlers.onEnd({ opened: this.#opened, code: this.#error.code, message: this.#error.message || reason });
  }

  #receive(event) {
    const handlers = this.#handlers;
    this.#error = { code: event.error?.code ?? "", message: event.error?.message ?? "" };
    switch (event.type) {
      case "session.created":
        this.#opened = true;
        this.#send({ type: "session.update", session: { type: "realtime", audio: { input: PCM, output: PCM } } });
        return handlers.onOpen();
      case "response.created":
        return handlers.onReply();
      case "response.output_audio.delta":
        return handlers.onAudio(decodePcm(event.delta));
      case "response.output_audio_transcript.delta":
        return handlers.onText(event.delta);
      case "response.done":
        return handlers.onReplyEnd(event.response.status === "cancelled");
    }
  }
}
