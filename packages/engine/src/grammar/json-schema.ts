import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { Automaton } from './automaton'
import { anyString, character, integer, number, otherName, quote } from './json-text'
import type { Rule } from './rule'
import { byte, choice, empty, lazy, optional, repeat, sequence, text } from './rule'

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
