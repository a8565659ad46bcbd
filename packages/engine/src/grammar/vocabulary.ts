import { UnsupportedError } from '@flashmla/spec'

/** What is needed of a tokenizer; the one of @huggingface/tokenizers fits. */
export interface TokenizerVocabulary {
  get_vocab(withAddedTokens?: boolean): Map<string, number>
  id_to_token(id: number): string | undefined
  /** Of the added tokens, which are special; without it all of them are taken to be. */
  get_added_tokens_decoder?(): ReadonlyMap<number, { readonly special: boolean }>
}

/** The bytes that each token of a byte-level vocabulary stands for (GPT-2's alphabet, as DeepSeek and Kimi use it). */
export class Vocabulary {
  readonly #bytes: Uint8Array[] = []
  /** Of each token, once asked for: its text, or null where it has none of its own. Without holes, so that a look-up is one load. */
  readonly #texts: (string | null | undefined)[]
  readonly #special = new Map<number, string>()

  /** @throws UnsupportedError when a token is not written in the byte-level alphabet */
  constructor(
    tokenizer: TokenizerVocabulary,
    readonly size: number,
  ) {
    this.#texts = new Array(size).fill(undefined)
    const alphabet = byteAlphabet()
    const plain = tokenizer.get_vocab(false)
    const all = tokenizer.get_vocab(true)
    const added = tokenizer.get_added_tokens_decoder?.()
    for (const [text, id] of all as Map<string | undefined, number>) {
      // An id without a token.
      if (text === undefined) continue
      const bytes = Array.from(text, (character) => alphabet.get(character))
      const marker = /^<[|｜].*[|｜]>$/.test(text)
      if (!marker && added?.get(id)?.special === false) {
        // Added tokens are written as they are, not in the alphabet.
        this.#bytes[id] = new TextEncoder().encode(text)
      } else if (marker || !plain.has(text)) {
        this.#special.set(id, text)
        this.#bytes[id] = new Uint8Array(0)
      } else if (bytes.includes(undefined)) {
        throw new UnsupportedError(
          `Token ${id} ("${text}") is not byte-level.`,
          'Use a model with a byte-level tokenizer.',
        )
      } else this.#bytes[id] = Uint8Array.from(bytes as number[])
    }
  }

  /** Empty for special tokens and for ids without a token. */
  bytes(id: number): Uint8Array {
    return this.#bytes[id] ?? new Uint8Array(0)
  }

  /** The token's text, where its bytes are whole characters. */
  wholeText(id: number): string | undefined {
    const known = this.#texts[id]
    if (known !== undefined) return known ?? undefined
    let text: string | null = null
    try {
      text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.bytes(id))
    } catch {}
    this.#texts[id] = text
    return text ?? undefined
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id)
  }

  /** How a special token is written; empty for others. */
  specialText(id: number): string {
    return this.#special.get(id) ?? ''
  }

  text(ids: Iterable<number>): string {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    let text = ''
    for (const id of ids) text += decoder.decode(this.bytes(id), { stream: true })
    return text + decoder.decode()
  }
}

/** GPT-2's bijection between bytes and printable characters. */
function byteAlphabet(): Map<string, number> {
  const alphabet = new Map<string, number>()
  let next = 256
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
    alphabet.set(String.fromCodePoint(printable ? byte : next++), byte)
  }
  return alphabet
}
