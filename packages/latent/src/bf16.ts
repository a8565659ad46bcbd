const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

/** Bits of the nearest bfloat16, ties to even; NaN stays NaN. */
export function floatToBf16(value: number): number {
  float[0] = value
  const word = bits[0]!
  if ((word & 0x7fffffff) > 0x7f800000) return (word >>> 16) | 0x40
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff
}

/** Value of a bfloat16's bits. */
export function bf16ToFloat(word: number): number {
  bits[0] = word << 16
  return float[0]!
}

/** Value of an IEEE half's bits. */
export function halfToFloat(word: number): number {
  const sign = word & 0x8000 ? -1 : 1
  const exponent = (word >>> 10) & 31
  const fraction = word & 1023
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}
