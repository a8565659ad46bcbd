/** A rotary table `[maxPositions, pairs, 2]` (cos, sin) for cases: each pair turns more slowly than the one before. */
export function angles(maxPositions: number, pairs: number): Float32Array {
  return Float32Array.from({ length: maxPositions * pairs * 2 }, (_, i) => {
    const angle = Math.floor(i / (2 * pairs)) * 0.7 ** (Math.floor(i / 2) % pairs)
    return i % 2 ? Math.sin(angle) : Math.cos(angle)
  })
}
