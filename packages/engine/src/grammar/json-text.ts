// The strings and numbers of JSON (RFC 8259) as grammars over bytes.
import type { ByteRule, Rule } from './rule'
import { byte, choice, optional, repeat, sequence, text, without } from './rule'

const digit = byte([48, 57])
const hex = byte([48, 57], [65, 70], [97, 102])
const tail = byte([0x80, 0xbf])
/** A character of a string that is no escape: ASCII but quote, backslash and controls; well-formed UTF-8 (RFC 3629). */
const unescaped = [
  [byte([0x20, 0x21], [0x23, 0x5b], [0x5d, 0x7f])],
  [byte([0xc2, 0xdf]), tail],
  [byte([0xe0, 0xe0]), byte([0xa0, 0xbf]), tail],
  [byte([0xe1, 0xec], [0xee, 0xef]), tail, tail],
  [byte([0xed, 0xed]), byte([0x80, 0x9f]), tail],
  [byte([0xf0, 0xf0]), byte([0x90, 0xbf]), tail, tail],
  [byte([0xf1, 0xf3]), tail, tail, tail],
  [byte([0xf4, 0xf4]), byte([0x80, 0x8f]), tail, tail],
] as const
/** A character of a string, escaped or not. */
export const character = choice(
  ...unescaped.map((bytes) => sequence(...bytes)),
  sequence(text('\\'), byte([34, 34], [47, 47], [92, 92], [98, 98], [102, 102], [110, 110], [114, 114], [116, 116])),
  sequence(
    text('\\u'),
    choice(
      sequence(byte([48, 57], [65, 67], [69, 70], [97, 99], [101, 102]), hex, hex, hex),
      sequence(byte([68, 68], [100, 100]), byte([48, 55]), hex, hex),
    ),
  ),
)
export const quote = text('"')
export const integer = sequence(optional(text('-')), choice(text('0'), sequence(byte([49, 57]), repeat(digit, 0, 20))))
const fraction = optional(sequence(text('.'), repeat(digit, 1, 24)))
const exponent = optional(sequence(byte([69, 69], [101, 101]), optional(byte([43, 43], [45, 45])), repeat(digit, 1, 3)))
export const number = sequence(integer, fraction, exponent)
/** What is left of a string, its end included. */
const restOfString = sequence(repeat(character, 0), quote)
export const anyString = sequence(quote, restOfString)

/**
 * What is left of a string that is to be none of `names`. Up to the first character that tells it from all of them nothing
 * is escaped: an escape could spell a name.
 */
export function otherName(names: readonly string[]): Rule {
  if (names.length === 0) return restOfString
  // A name whose next character has to be escaped can't be spelled from here.
  const heads = [...new Set(names.flatMap((name) => Array.from(name).slice(0, 1)))].filter(
    (head) => JSON.stringify(head) === `"${head}"`,
  )
  const encoded = heads.map((head) => [...new TextEncoder().encode(head)])
  return choice(
    ...(names.includes('') ? [] : [quote]),
    ...unescaped.map((bytes) => {
      const same = encoded.filter(([first]) => bytes[0].set[first!] === 1)
      return sequence(otherCharacter(bytes, same), restOfString)
    }),
    ...heads.map((head) => {
      const tails = names.filter((name) => name.startsWith(head)).map((name) => name.slice(head.length))
      return sequence(text(head), otherName(tails))
    }),
  )
}

/** A sequence of `bytes` that is none of `characters`, which are as long. */
function otherCharacter(bytes: readonly ByteRule[], characters: readonly number[][]): Rule {
  const [first, ...rest] = bytes
  if (!first || characters.length === 0) return sequence(...bytes)
  const codes = [...new Set(characters.map(([code]) => code!))]
  const same = rest.length === 0 ? [] : codes
  return choice(
    sequence(without(first, codes), ...rest),
    ...same.map((code) => {
      const tails = characters.filter((each) => each[0] === code).map((each) => each.slice(1))
      return sequence(byte([code, code]), otherCharacter(rest, tails))
    }),
  )
}
