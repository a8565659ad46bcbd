const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

/** Largest finite e4m3 value. */
export const E4M3_MAX = 448

/** Values of all 256 e4m3 bytes: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, NaN at 0x7f and 0xff (OCP OFP8 1.0, §5.2). */
const e4m3Values = Float32Array.from({ length: 256 }, (_, byte) => {
  const sign = byte & 0x80 ? -1 : 1
  const exponent = (byte >>> 3) & 15
  const mantissa = byte & 7
  if (exponent === 15 && mantissa === 7) return Number.NaN
  return exponent === 0 ? sign * mantissa * 2 ** -9 : sign * (1 + mantissa / 8) * 2 ** (exponent - 7)
})

/** Value of an e4m3 byte. */
export function e4m3ToFloat(byte: number): number {
  return e4m3Values[byte]!
}

/**
 * Byte of the nearest e4m3 value, ties to even, of `value` taken as float32. Past ±448, the infinities included, it
 * saturates to ±448 (as CUDA's `__NV_SATFINITE` does); NaN stays NaN, with its sign.
 */
export function floatToE4m3(value: number): number {
  float[0] = value
  const word = bits[0]!
  const sign = (word >>> 24) & 0x80
  const magnitude = word & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7f
  if (magnitude >= 0x43e00000) return sign | 0x7e
  if (magnitude < 0x3c800000) {
    // Below 2^-6 the step is 2^-9, which is one unit in the last place of a float32 at 2^14: adding rounds to it.
    float[0] = Math.abs(float[0]!) + 16384
    return sign | (bits[0]! & 15)
  }
  const rounded = magnitude + 0x7ffff + ((magnitude >>> 20) & 1)
  return sign | ((rounded >>> 20) - (120 << 3))
}

/** Writes `n` values of `source`, each times `scale`, as e4m3 bytes. */
export function encodeE4m3(
  source: Float32Array,
  sourceOffset: number,
  n: number,
  scale: number,
  target: Uint8Array,
  targetOffset: number,
): void {
  for (let i = 0; i < n; i++) target[targetOffset + i] = floatToE4m3(source[sourceOffset + i]! * scale)
}

/** Reads `n` e4m3 bytes of `source`, each times `scale`. */
export function decodeE4m3(
  source: Uint8Array,
  sourceOffset: number,
  n: number,
  scale: number,
  target: Float32Array,
  targetOffset: number,
): void {
  for (let i = 0; i < n; i++) target[targetOffset + i] = e4m3Values[source[sourceOffset + i]!]! * scale
}

/** Value of an e8m0 byte: 2^(byte − 127), NaN for 255 (OCP Microscaling 1.0, §5.4.1). */
export function e8m0ToFloat(byte: number): number {
  return byte === 255 ? Number.NaN : 2 ** (byte - 127)
}

/** Byte of the smallest power of two ≥ `value` (as float32), within 2^−127 … 2^127; 255 for NaN and values below zero. */
export function floatToE8m0(value: number): number {
  if (!(value >= 0)) return 255
  float[0] = value
  const word = bits[0]! & 0x7fffffff
  // Subnormal: above 2^-127 the next power is 2^-126.
  if (word < 0x800000) return word > 0x400000 ? 1 : 0
  return Math.min((word >>> 23) + (word & 0x7fffff ? 1 : 0), 254)
}
