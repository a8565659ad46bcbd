/** How a token is drawn from a row of logits. */
export interface Draw {
  /** 0 takes the largest logit. */
  readonly temperature: number
  /** Of the k likeliest; 0 of all. */
  readonly topK: number
  /** Of the smallest set of probability ≥ topP. */
  readonly topP: number
  /** Of tokens that are at least minP times as likely as the likeliest. */
  readonly minP: number
  /** A multiple of 2^-32 in [0, 1), which decides. */
  readonly random: number
}

/** Columns of `Backend.sample`'s draws. */
export const DRAW_COLUMNS = 6

/** Writes a draw as a row of `Backend.sample`'s draws: float32 holds each value, the random number in two halves. */
export function packDraw(target: Float32Array, row: number, { temperature, topK, topP, minP, random }: Draw): void {
  const word = Math.floor(random * 2 ** 32)
  const [high, low] = [Math.floor(word / 2 ** 16), word % 2 ** 16]
  target.set([temperature, topK, topP, minP, high / 2 ** 16, low / 2 ** 32], row * DRAW_COLUMNS)
}
