import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { Automaton } from './automaton'
import type { ByteRule, Rule } from './rule'
import { byte, choice, empty, lazy, optional, repeat, sequence, text, without } from './rule'

type Schema = Readonly<Record<string, unknown>>

/** Keywords that shape the grammar, and those that say nothing about the text. Any other is refused. */
const known = new Set(
  `type properties required additionalProperties items prefixItems minItems maxItems minLength maxLength enum const
  anyOf oneOf allOf $ref $defs definitions title description default examples $schema $id $comment nullable`.split(
    /\s+/,
  ),
)

/** Keywords that say something about the values of one type. */
const shapes = {
  object: ['properties', 'required', 'additionalProperties'],
  array: ['items', 'prefixItems', 'minItems', 'maxItems'],
  string: ['minLength', 'maxLength'],
} as const
const shaping = Object.values(shapes).flat()

const space = repeat(byte([32, 32]), 0, 1)
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
const character = choice(
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
const quote = text('"')
const integer = sequence(optional(text('-')), choice(text('0'), sequence(byte([49, 57]), repeat(digit, 0, 20))))
const fraction = optional(sequence(text('.'), repeat(digit, 1, 24)))
const exponent = optional(sequence(byte([69, 69], [101, 101]), optional(byte([43, 43], [45, 45])), repeat(digit, 1, 3)))
const number = sequence(integer, fraction, exponent)
/** What is left of a string, its end included. */
const restOfString = sequence(repeat(character, 0), quote)
const anyString = sequence(quote, restOfString)
const anyValue: Rule = lazy(() =>
  choice(anyString, number, text('true'), text('false'), text('null'), list(anyValue, 0), record(anyValue)),
)

/** Any JSON object. */
export const jsonObject: Rule = record(anyValue)

/**
 * The grammar of the JSON texts that a schema allows, with at most one space after commas and colons and properties
 * in the order of the schema, as OpenAI's structured outputs have them. As there, absent `additionalProperties`
 * means none where `properties` are given, and `oneOf` is read as `anyOf`.
 * @throws InvalidArgumentError when the schema is malformed, UnsupportedError when it uses a keyword that is not followed
 */
export function jsonSchemaRule(schema: unknown): Rule {
  try {
    const compiler = new SchemaCompiler(schema)
    const rule = compiler.compile(schema, '#')
    compiler.checkRefs()
    return rule
  } catch (error) {
    if (error instanceof RangeError) throw malformed('#', 'it is nested too deeply')
    throw error
  }
}

class SchemaCompiler {
  readonly #refs = new Map<string, Rule>()

  constructor(private readonly root: unknown) {}

  /** A reference that leads to itself without a byte between, through others or not, matches nothing. */
  checkRefs(): void {
    for (const [ref, rule] of this.#refs) {
      const { stacks, accepting } = new Automaton(rule).start
      if (stacks.length === 0 && !accepting) throw malformed(ref, 'it refers to itself')
    }
  }

  compile(schema: unknown, path: string): Rule {
    if (schema === true) return anyValue
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
      throw malformed(path, 'it is not an object')
    const fields = schema as Schema
    for (const key of Object.keys(fields)) {
      if (!known.has(key))
        throw new UnsupportedError(
          `The JSON schema keyword "${key}" at ${path} is not followed.`,
          'Leave it out and check it after generation.',
        )
    }
    for (const key of ['$ref', 'anyOf', 'oneOf', 'allOf']) {
      const beside = key in fields && shaping.find((each) => each in fields)
      if (beside)
        throw new UnsupportedError(
          `The JSON schema keyword "${beside}" beside "${key}" at ${path} is not followed.`,
          `Move it into the schemas of "${key}".`,
        )
    }
    if (typeof fields.$ref === 'string') return this.#ref(fields.$ref, path)
    if ('const' in fields) return text(JSON.stringify(fields.const))
    if ('enum' in fields) {
      if (!Array.isArray(fields.enum) || fields.enum.length === 0)
        throw malformed(`${path}/enum`, 'it is not a list of values')
      return choice(...fields.enum.map((value) => text(JSON.stringify(value))))
    }
    for (const key of ['anyOf', 'oneOf', 'allOf'] as const) {
      if (!(key in fields)) continue
      const of = fields[key]
      if (!Array.isArray(of) || of.length === 0) throw malformed(`${path}/${key}`, 'it is not a list of schemas')
      if (key === 'allOf' && of.length > 1)
        throw new UnsupportedError(`allOf of ${of.length} schemas at ${path} is not followed.`, 'Merge them into one.')
      return choice(...of.map((each, i) => this.compile(each, `${path}/${key}/${i}`)))
    }
    const types =
      fields.type ?? Object.entries(shapes).find(([, keywords]) => keywords.some((each) => each in fields))?.[0]
    if (types === undefined) return anyValue
    const rules = (Array.isArray(types) ? types : [types]).map((type) => this.#typed(type, fields, path))
    if (rules.length === 0) throw malformed(`${path}/type`, 'it is empty')
    return choice(...rules, ...(fields.nullable === true ? [text('null')] : []))
  }

  #typed(type: unknown, fields: Schema, path: string): Rule {
    switch (type) {
      case 'string': {
        const { min, max } = bounds(fields, 'minLength', 'maxLength', path)
        return sequence(quote, repeat(character, min, max), quote)
      }
      case 'integer':
        return integer
      case 'number':
        return number
      case 'boolean':
        return choice(text('true'), text('false'))
      case 'null':
        return text('null')
      case 'array':
        return this.#array(fields, path)
      case 'object':
        return this.#object(fields, path)
      default:
        throw malformed(`${path}/type`, `${JSON.stringify(type)} is not a type`)
    }
  }

  #array(fields: Schema, path: string): Rule {
    const { min, max } = bounds(fields, 'minItems', 'maxItems', path)
    if ('prefixItems' in fields) {
      const items = fields.prefixItems
      if (!Array.isArray(items) || items.length === 0)
        throw malformed(`${path}/prefixItems`, 'it is not a list of schemas')
      const rules = items.map((each, i) => this.compile(each, `${path}/prefixItems/${i}`))
      return sequence(
        text('['),
        ...rules.flatMap((rule, i) => (i === 0 ? [rule] : [text(','), space, rule])),
        text(']'),
      )
    }
    return list(this.compile(fields.items ?? true, `${path}/items`), min, max)
  }

  #object(fields: Schema, path: string): Rule {
    const properties = fields.properties ?? {}
    if (typeof properties !== 'object' || properties === null)
      throw malformed(`${path}/properties`, 'it is not an object')
    const required = fields.required ?? []
    if (!Array.isArray(required)) throw malformed(`${path}/required`, 'it is not a list')
    const extra = fields.additionalProperties ?? !('properties' in fields)
    const entries = Object.entries(properties).map(([name, schema]) => ({
      required: required.includes(name),
      rule: sequence(text(`${JSON.stringify(name)}:`), space, this.compile(schema, `${path}/properties/${name}`)),
    }))
    for (const name of required)
      if (!Object.hasOwn(properties, name as string))
        throw malformed(`${path}/required`, `${JSON.stringify(name)} is not among the properties`)
    const name = sequence(quote, otherName(Object.keys(properties)))
    const others = extra === false ? undefined : pair(name, this.compile(extra, `${path}/additionalProperties`))
    const comma = sequence(text(','), space)
    /** The rest of the object from property i on; `first` while no property was written. */
    const memo = new Map<string, Rule>()
    const rest = (i: number, first: boolean): Rule => {
      const key = `${i} ${first}`
      const made = memo.get(key)
      if (made) return made
      const entry = entries[i]
      let rule: Rule
      if (!entry) {
        const more =
          others && (first ? sequence(others, repeat(sequence(comma, others), 0)) : repeat(sequence(comma, others), 0))
        rule = more ? (first ? optional(more) : more) : empty
      } else {
        const taken = sequence(first ? empty : comma, entry.rule, rest(i + 1, false))
        rule = entry.required ? taken : choice(taken, rest(i + 1, first))
      }
      memo.set(key, rule)
      return rule
    }
    return sequence(text('{'), rest(0, true), text('}'))
  }

  #ref(ref: string, path: string): Rule {
    const known = this.#refs.get(ref)
    if (known) return known
    if (ref !== '#' && !ref.startsWith('#/'))
      throw new UnsupportedError(
        `The reference ${ref} at ${path} is no path within the schema.`,
        'Copy its target into $defs and write #/$defs/name.',
      )
    let target: unknown = this.root
    for (const part of ref.slice(1).split('/').slice(1)) {
      const name = decoded(part, path).replaceAll('~1', '/').replaceAll('~0', '~')
      target =
        typeof target === 'object' && target !== null && Object.hasOwn(target, name)
          ? (target as Schema)[name]
          : undefined
    }
    if (target === undefined) throw malformed(path, `${ref} points to nothing`)
    const rule = lazy(() => compiled)
    this.#refs.set(ref, rule)
    const compiled = this.compile(target, ref)
    return rule
  }
}

function decoded(part: string, path: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    throw malformed(path, `${part} in a reference is not percent-encoded text`)
  }
}

function list(item: Rule, min: number, max = Number.POSITIVE_INFINITY): Rule {
  const more = sequence(text(','), space, item)
  const filled = sequence(item, repeat(more, Math.max(0, min - 1), max - 1))
  return sequence(text('['), max === 0 ? empty : min === 0 ? optional(filled) : filled, text(']'))
}

function pair(name: Rule, value: Rule): Rule {
  return sequence(name, text(':'), space, value)
}

/**
 * What is left of a string that is to be none of `names`. Up to the first character that tells it from all of them nothing
 * is escaped: an escape could spell a name.
 */
function otherName(names: readonly string[]): Rule {
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

function record(value: Rule): Rule {
  const entry = pair(anyString, value)
  return sequence(text('{'), optional(sequence(entry, repeat(sequence(text(','), space, entry), 0))), text('}'))
}

function bounds(fields: Schema, low: string, high: string, path: string): { min: number; max: number } {
  const min = (fields[low] ?? 0) as number
  const max = (fields[high] ?? Number.POSITIVE_INFINITY) as number
  const whole = (value: number) =>
    value === Number.POSITIVE_INFINITY || (Number.isInteger(value) && value >= 0 && value <= 100_000)
  if (!whole(min) || !whole(max) || min === Number.POSITIVE_INFINITY || min > max)
    throw malformed(path, `${low} ${min} and ${high} ${max} are no range of whole numbers up to 100000`)
  return { min, max }
}

function malformed(path: string, why: string): InvalidArgumentError {
  return new InvalidArgumentError(`The JSON schema is malformed at ${path}: ${why}.`, 'Correct the schema.')
}
