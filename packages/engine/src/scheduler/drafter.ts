/** Proposes tokens that may follow; a wrong proposal costs time, never correctness. */
export interface Drafter {
  /** At most `max` tokens to follow `tokens`. */
  draft(tokens: readonly number[], max: number): number[]
}

/**
 * Prompt lookup (Saxena 2023): finds the latest earlier place where the last few tokens stood, and proposes what
 * followed there. Pays where the answer repeats its prompt: summaries, edits, code.
 */
export class PromptLookupDrafter implements Drafter {
  constructor(
    private readonly maxNgram = 3,
    private readonly minNgram = 2,
  ) {}

  draft(tokens: readonly number[], max: number): number[] {
    const end = tokens.length
    for (let n = Math.min(this.maxNgram, end - 1); n >= this.minNgram; n--) {
      for (let start = end - n - 1; start >= 0; start--) {
        let same = 0
        while (same < n && tokens[start + same] === tokens[end - n + same]) same++
        if (same === n) return tokens.slice(start + n, Math.min(start + n + max, end))
      }
    }
    return []
  }
}
