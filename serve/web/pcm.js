/** Samples as the wire carries them: PCM16, little endian, base64. */

/** @param {Float32Array} samples -1..1 @returns {string} */
export function encodePcm(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  for (let i = 0; i < samples.length; i++) view.setInt16(i * 2, Math.round(Math.max(-1, Math.min(1, samples[i])) * 32767), true);
  return btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
}

/** @param {string} text @returns {Float32Array} -1..1 */
export function decodePcm(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, i) => view.getInt16(i * 2, true) / 32768);
}
