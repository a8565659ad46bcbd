import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { InvalidArgumentError } from '@flashmla/spec'
import { Tokenizer } from '@huggingface/tokenizers'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { TextAssembler } from '../scheduler/text'
import { loadTokenizer } from '../tokenizer'
import { Automaton } from './automaton'
import { jsonObject, jsonSchemaRule } from './json-schema'
import type { Rule } from './rule'
import { byte, optional, sequence } from './rule'
import { TokenGrammar, TokenTrie } from './token-grammar'
import { Vocabulary } from './vocabulary'

const directory = fileURLToPath(new URL('../../../tiny-mla/model/', import.meta.url))
const tokenizer = await loadTokenizer(directory)
const vocabulary = new Vocabulary(tokenizer, 4096)
const trie = new TokenTrie(vocabulary)
const end = 1

function matches(rule: Rule, text: string): boolean {
  const automaton = new Automaton(rule)
  let state: ReturnType<Automaton['step']> = automaton.start
  for (const code of new TextEncoder().encode(text)) state = state && automaton.step(state, code)
  return state?.accepting ?? false
}

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 5 },
    age: { type: 'integer' },
    tags: { type: 'array', items: { enum: ['a', 'b'] }, minItems: 1, maxItems: 2 },
  },
  required: ['name'],
  additionalProperties: false,
}
/** Any property, but a and é are integers. */
const open = { properties: { a: { type: 'integer' }, é: { type: 'integer' }, 'q"': {} }, additionalProperties: true }
const tree = {
  $defs: {
    node: {
      type: 'object',
      properties: { v: { type: 'number' }, next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } },
      required: ['v', 'next'],
    },
  },
  $ref: '#/$defs/node',
}

describe('jsonSchemaRule', () => {
  it.each([
    [person, '{"name":"Al"}', true],
    [person, '{"name": "Al", "age":-12, "tags":["a","b"]}', true],
    [person, '{"name":"日本語\\u00e9\\n"}', true],
    [person, '{"age":1}', false],
    [person, '{"name":""}', false],
    [person, '{"name":"toolong"}', false],
    [person, '{"name":"Al","tags":[]}', false],
    [person, '{"name":"Al","tags":["a","b","a"]}', false],
    [person, '{"name":"Al","more":1}', false],
    [person, '{"name":"Al",}', false],
    [tree, '{"v":1.5e3,"next":{"v":0,"next":null}}', true],
    [tree, '{"v":01,"next":null}', false],
    [{ type: ['integer', 'null'] }, 'null', true],
    [{ const: { a: [1] } }, '{"a":[1]}', true],
    [{ type: 'object', additionalProperties: { type: 'boolean' } }, '{"x":true, "y":false}', true],
    [{ type: 'array', prefixItems: [{ type: 'null' }, { type: 'boolean' }] }, '[null,true]', true],
    [open, '{"a":1,"é":2,"b":null,"ab":[]}', true],
    [open, '{"":0,"a":0}', false],
    [open, '{"":0,"ba":0,"b\\u0061":0,"èa":0,"ê":0,"éa":0}', true],
    [open, '{"èé":"x","海":0,"ab":0}', true],
    [open, '{"a":"x"}', false],
    [open, '{"a":1,"a":"x"}', false],
    [open, '{"é":"x"}', false],
    [open, '{"\\u0061":"x"}', false],
    [{ prefixItems: [{ type: 'null' }] }, '[null]', true],
    [{ prefixItems: [{ type: 'null' }] }, '[1]', false],
    [{ additionalProperties: { type: 'null' } }, '{"a":1}', false],
    [{ minLength: 2 }, '"a"', false],
    [{ minLength: 2 }, '"ab"', true],
    [{}, '[{"a":[1,"b",null]},-0.5]', true],
    [{}, '{"a"}', false],
  ])('%j and %s: %s', (schema, text, expected) => {
    expect(matches(jsonSchemaRule(schema), text)).toBe(expected)
  })

  it('accepts what JSON.stringify writes, and no text cut short', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 3 })), (value) => {
        const text = JSON.stringify(value)
        expect(matches(jsonObject, text)).toBe(true)
        expect(matches(jsonObject, text.slice(0, -1))).toBe(false)
      }),
    )
  })

  it('says what it does not follow and what is malformed', () => {
    expect(() => jsonSchemaRule({ type: 'string', pattern: 'a+' })).toThrow('"pattern" at # is not followed')
    expect(() => jsonSchemaRule({ type: 'strin' })).toThrow('"strin" is not a type')
    expect(() => jsonSchemaRule({ $ref: '#/nowhere' })).toThrow('points to nothing')
    expect(() => jsonSchemaRule({ $ref: '#/$defs/100%' })).toThrow('100% in a reference is not percent-encoded')
    expect(() => jsonSchemaRule({ properties: { a: { $ref: '#node' } } })).toThrow('#node at #/properties/a is no path')
    expect(() => jsonSchemaRule({ properties: { a: {} }, anyOf: [{ required: ['a'] }] })).toThrow(
      '"properties" beside "anyOf" at # is not followed',
    )
    const circle = { a: { $ref: '#/$defs/b' }, b: { anyOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/b' }] } }
    expect(() => jsonSchemaRule({ properties: { x: { $ref: '#/$defs/a' } }, $defs: circle })).toThrow(
      'malformed at #/$defs/a: it refers to itself',
    )
    expect(() => jsonSchemaRule(7)).toThrow('it is not an object')
    let deep: object = {}
    for (let i = 0; i < 50_000; i++) deep = { items: deep }
    expect(() => jsonSchemaRule(deep)).toThrow('nested too deeply')
  })

  it('refuses more optional parts than it can look through', () => {
    const many = Array.from({ length: 50_000 }, () => optional(byte([97, 97])))
    expect(() => new Automaton(sequence(...many))).toThrow(InvalidArgumentError)
    const later = new Automaton(sequence(byte([98, 98]), ...many))
    expect(() => later.step(later.start, 98)).toThrow('too many optional parts')
  })
})

it('whatever the model prefers, the tokens that the mask allows spell a JSON text of the schema', () => {
  for (const schema of [person, tree]) {
    const grammar = new TokenGrammar(jsonSchemaRule(schema), trie, [end])
    fc.assert(
      fc.property(fc.array(fc.nat(), { minLength: 200, maxLength: 200 }), (choices) => {
        const constraint = grammar.constraint()
        const ids: number[] = []
        for (const pick of choices) {
          const mask = constraint.mask()
          const allowed = Array.from({ length: 4096 }, (_, id) => id).filter((id) => (mask[id >> 5]! >>> (id & 31)) & 1)
          expect(allowed.length).toBeGreaterThan(0)
          const id = allowed[pick % allowed.length]!
          if (id === end) break
          constraint.accept(id)
          ids.push(id)
          if (constraint.ended) break
        }
        const text = vocabulary.text(ids)
        if (constraint.ended) expect(JSON.parse(text)).toBeTypeOf('object')
        expect(() => constraint.accept(tokenizer.encode('}}}}}}}').ids.at(-1)!)).toThrow('is not allowed here')
      }),
      { numRuns: 20 },
    )
  }
})

describe('TextAssembler', () => {
  const assemble = (text: string, stop: string[]) => {
    const assembler = new TextAssembler(vocabulary, stop)
    const pieces: string[] = []
    for (const id of tokenizer.encode(text, { add_special_tokens: false }).ids) {
      pieces.push(assembler.push(id))
      if (assembler.stopped) break
    }
    return { pieces, text: pieces.join('') + assembler.flush() }
  }

  it('gives back the text, never half a character', () => {
    const { pieces, text } = assemble('The sea 海は青い 🐋 and more', [])
    expect(text).toBe('The sea 海は青い 🐋 and more')
    expect(pieces.join('')).not.toContain('\ufffd')
  })

  it('ends before a stop string and never shows a part of one', () => {
    const { pieces, text } = assemble('call me Ishmael, some years ago', ['Ishmael, s', 'never'])
    expect(text).toBe('call me ')
    expect(pieces.join('')).toBe('call me ')
    expect(assemble('call me Ish', ['Ishmael']).text).toBe('call me Ish')
  })
})

describe('Vocabulary', () => {
  it('writes added tokens that are not special, and passes over ids without a token', async () => {
    const json = JSON.parse(await readFile(join(directory, 'tokenizer.json'), 'utf8'))
    json.added_tokens.push({ id: 4100, content: '</thought>é', special: false, normalized: false })
    json.added_tokens.push({ id: 4101, content: '<|call|>', special: false, normalized: false })
    const extended = new Tokenizer(json, {})
    const larger = new Vocabulary(extended, 4102)
    const { ids } = extended.encode('sea</thought>é<|call|> whale')
    expect(ids).toContain(4100)
    expect(larger.text(ids)).toBe('sea</thought>é whale')
    expect(larger.wholeText(4100)).toBe('</thought>é')
    expect(larger.isSpecial(4100)).toBe(false)
    expect(larger.specialText(4101)).toBe('<|call|>')
    expect(larger.bytes(4098)).toHaveLength(0)
  })

  it('keeps a byte order mark, as the assembler does', () => {
    const { ids } = tokenizer.encode('\ufeffsea', { add_special_tokens: false })
    const assembler = new TextAssembler(vocabulary, [])
    expect(vocabulary.text(ids)).toBe('\ufeffsea')
    expect(ids.map((id) => assembler.push(id)).join('')).toBe('\ufeffsea')
  })
})
