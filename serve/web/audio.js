/** Microphone and loudspeaker: one audio context, one worklet between both, and what can go wrong with them. */

const SILENT_BLOCKS = 300; // 3 s of exact zeros come from a switch, not from a quiet room
const ERRORS = {
  NotAllowedError: "refused",
  SecurityError: "refused",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
};

// The agent was trained on noise, and a suppressor cuts the soft beginnings of words: so it is off. Microphones differ by 30 dB: gain control is on.
const CONSTRAINTS = { echoCancellation: true, noiseSuppression: false, autoGainControl: true, channelCount: 1 };

/**
 * @typedef {object} Handlers
 * @property {(samples: Float32Array) => void} onHeard 20 ms at 24 kHz
 * @property {(levels: object) => void} onLevels every 10 ms, from the worklet
 * @property {(state: string) => void} onMicrophone off, asking, on, refused, missing, busy, insecure or silent
 * @property {(suspended: boolean) => void} onSuspended the browser has stopped the sound, a gesture may resume it
 */

export class Sound {
  #handlers;
  #ready = null;
  #context = null;
  #node = null;
  #gate = null;
  #stream = null;
  #source = null;
  #muted = false;
  #question = null; // the recording that speaks in the microphone's place
  #silentBlocks = 0;
  #state = "off";

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    this.#watchPermission();
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#devicesChanged());
  }

  /** Seconds between the page's last sample and the loudspeaker, as far as the browser tells. */
  get outputLatencyS() {
    return this.#context?.outputLatency || this.#context?.baseLatency || 0;
  }

  /** Start the sound, or resume it; call it from a gesture. */
  start() {
    // At the device's own rate: the worklet resamples, and no browser needs to.
    this.#context ??= new AudioContext({ latencyHint: "interactive" });
    this.#context.resume();
    this.#ready ??= this.#build(this.#context);
    return this.#ready;
  }

  async #build(context) {
    context.onstatechange = () => this.#handlers.onSuspended(context.state !== "running" && context.state !== "closed");
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    // Straight to the loudspeaker. That is in the canceller's reference everywhere it matters: Chromium on desktops cancels all it plays to the
    // device (since 111), Firefox what its audio graph plays, Safari and phones what the system plays. A loopback through RTCPeerConnection, which
    // older Chromium needed, would add a codec and a jitter buffer of its own to every answer and hide from the page when it sounds.
    this.#node = new AudioWorkletNode(context, "duplex", { outputChannelCount: [1], channelCount: 1, channelCountMode: "explicit" });
    this.#node.connect(context.destination);
    this.#node.port.onmessage = ({ data }) => this.#report(data);
    this.#gate = new GainNode(context, { gain: this.#open });
    this.#gate.connect(this.#node);
  }

  /** Open the microphone; `onMicrophone` says how it went. */
  async listen() {
    if (this.#state === "asking") return;
    if (!navigator.mediaDevices) return this.#tell("insecure");
    this.#tell("asking");
    const context = this.#context;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: CONSTRAINTS });
      if (context !== this.#context) return stream.getTracks().forEach((track) => track.stop()); // stopped meanwhile
      this.#release();
      this.#stream = stream;
    } catch (error) {
      if (context !== this.#context) return;
      this.#release();
      return this.#tell(ERRORS[error.name] ?? "busy");
    }
    this.#stream.getAudioTracks()[0].onended = () => this.listen(); // unplugged: take the one that is left
    this.#source = context.createMediaStreamSource(this.#stream);
    this.#source.connect(this.#gate);
    this.#silentBlocks = 0;
    this.#tell("on");
  }

  /** Let the microphone through, or not; it goes on sending silence, for the agent hears all the time. */
  mute(muted) {
    this.#muted = muted;
    this.#setGate();
  }

  /** Play the agent. @param {Float32Array} samples 24 kHz */
  play(samples) {
    this.#node.port.postMessage({ kind: "audio", samples }, [samples.buffer]);
  }

  /** The reply is complete. */
  endReply() {
    this.#node.port.postMessage({ kind: "end" });
  }

  /** Drop what waits to be played. */
  clear() {
    this.#node?.port.postMessage({ kind: "clear" });
  }

  /** Play a recording into the microphone's place, and audibly; the microphone waits meanwhile. Resolves at its end. */
  async ask(url) {
    const context = this.#context;
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status}`);
    const buffer = await context.decodeAudioData(await response.arrayBuffer());
    if (context !== this.#context) return; // stopped meanwhile
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(this.#node);
    source.connect(context.destination);
    this.#question = source;
    this.#setGate();
    source.start();
    await new Promise((resolve) => (source.onended = resolve));
    this.#question = null;
    this.#setGate();
  }

  /** Let go of microphone and loudspeaker. */
  stop() {
    this.#release();
    this.#context?.close();
    this.#context = this.#ready = this.#node = this.#gate = this.#question = null;
    this.#tell("off");
  }

  get #open() {
    return this.#muted || this.#question ? 0 : 1;
  }

  #setGate() {
    this.#gate?.gain.setTargetAtTime(this.#open, this.#context.currentTime, 0.005);
  }

  #tell(state) {
    this.#state = state;
    this.#handlers.onMicrophone(state);
  }

  #release() {
    this.#source?.disconnect();
    for (const track of this.#stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.#source = this.#stream = null;
  }

  #report(data) {
    if (data.kind === "heard") return this.#handlers.onHeard(data.samples);
    const silent = this.#source && this.#open && data.userPeak === 0;
    this.#silentBlocks = silent ? this.#silentBlocks + 1 : 0;
    if (this.#silentBlocks === SILENT_BLOCKS) this.#tell("silent");
    else if (this.#state === "silent" && data.userPeak > 0) this.#tell("on");
    this.#handlers.onLevels(data);
  }

  /** A permission given later is taken up by itself. Some browsers do not know this permission by name: there the button does it. */
  async #watchPermission() {
    const permission = await navigator.permissions?.query({ name: "microphone" }).catch(() => null);
    permission?.addEventListener("change", () => {
      if (permission.state === "granted" && this.#state === "refused" && this.#context) this.listen();
    });
  }

  #devicesChanged() {
    if (["missing", "busy"].includes(this.#state) && this.#context) this.listen();
  }
}
