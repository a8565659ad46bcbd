/**
 * Proposes tokens that may follow; a wrong proposal costs time, never correctness. A call that throws proposes nothing; a
 * proposal ends before the first that is no token id of the vocabulary.
 */
export interface Drafter {
  /** At most `max` tokens to follow `tokens`. */
  draft(tokens: readonly number[], max: number): number[]
}

/** What of the drafter's proposal can be tried. */
export function safeDraft(drafter: Drafter, tokens: readonly number[], max: number, vocabSize: number): number[] {
  try {
    const draft = drafter.draft(tokens, max).slice(0, max)
    const end = draft.findIndex((token) => !Number.isInteger(token) || token < 0 || token >= vocabSize)
    return end < 0 ? draft : draft.slice(0, end)
  } catch {
    return []
  }
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
