/** One way of running tiny-mla: the reference, the fast backend, llama.cpp. */
export interface Contender {
  readonly name: string
  /** Logits `[vocab]` after the last of `tokens`. */
  logits(tokens: readonly number[]): Promise<Float32Array>
  /** Room for `batch` sequences of `length` tokens each, which share nothing. */
  session(batch: number, length: number): Promise<Session>
  dispose(): Promise<void>
}

/** Sequences that grow together. */
export interface Session {
  /** Appends a prompt to each sequence, as many in one pass as fit `passTokens`; the last logits of each are computed. */
  prefill(prompts: readonly (readonly number[])[]): Promise<void>
  /** Appends one token to each sequence in one pass and computes its logits. */
  decode(tokens: readonly number[]): Promise<void>
  /** Forgets the sequences, so that another run can begin. */
  reset(): void
  dispose(): Promise<void>
}

/** Tokens of one pass over prompts: llama.cpp's own default for its physical batch. */
export const passTokens = 512

/** Prompts in runs that fit one pass. */
export function passes<T extends { readonly length: number }>(
  prompts: readonly T[],
): { first: number; prompts: T[] }[] {
  const runs: { first: number; prompts: T[] }[] = []
  let used = Infinity
  prompts.forEach((prompt, s) => {
    if (used + prompt.length > passTokens) {
      runs.push({ first: s, prompts: [] })
      used = 0
    }
    runs.at(-1)!.prompts.push(prompt)
    used += prompt.length
  })
  return runs
}
