/**
 * Splits kv_b_proj `[h · (nope + v), r]` into the two weights of the absorbed form:
 * q · W_UK needs `uk [h, r, nope]`, W_UV · o needs `uv [h, v, r]` (DeepSeek-V2, arXiv 2405.04434, §2.1.2).
 */
export function absorbKvB(
  kvB: Float32Array,
  heads: number,
  nope: number,
  v: number,
  rank: number,
): { uk: Float32Array; uv: Float32Array } {
  const uk = new Float32Array(heads * rank * nope)
  const uv = new Float32Array(heads * v * rank)
  for (let head = 0; head < heads; head++) {
    const base = head * (nope + v) * rank
    for (let i = 0; i < nope; i++) {
      for (let r = 0; r < rank; r++) uk[(head * rank + r) * nope + i] = kvB[base + i * rank + r]!
    }
    uv.set(kvB.subarray(base + nope * rank, base + (nope + v) * rank), head * v * rank)
  }
  return { uk, uv }
}
