import { UnsupportedError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Automaton } from '../grammar/automaton'
import { Vocabulary } from '../grammar/vocabulary'
import { TextAssembler } from '../scheduler/text'
import { ToolCallParser } from './tool-call-parser'
import type { ToolCall, ToolFormat } from './tool-format'
import { forcedCall, toolFormat, toolMarkers } from './tool-format'

const templates = {
  'deepseek-v3': '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ type }}<｜tool▁sep｜>{{ name }}\n```json\n',
  'deepseek-v3.1': '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>{{ arguments }}',
  'kimi-k2': '<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>',
  hermes: '<tool_call>\n{"name": ...',
  json: '{{ messages }}',
} as const

const text: Record<Exclude<keyof typeof templates, 'json'>, string> = {
  'deepseek-v3':
    'Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo <3"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
  'deepseek-v3.1':
    'Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo <3"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
  'kimi-k2':
    'Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Oslo <3"}<|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>',
  hermes:
    'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo <3"}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
}

function read(format: ToolFormat, pieces: readonly string[], begun?: string) {
  const parser = new ToolCallParser(format, begun)
  const read = [...pieces.map((piece) => parser.push(piece)), parser.flush()]
  const calls: ToolCall[] = read.flatMap((piece) => [...piece.calls])
  return { text: read.map((piece) => piece.text).join(''), calls }
}

/** The whole of `pieces`, cut at random places. */
const cut = (whole: string) =>
  fc.array(fc.nat(whole.length), { maxLength: 12 }).map((places) => {
    const at = [0, ...places.sort((a, b) => a - b), whole.length]
    return at.slice(1).map((end, i) => whole.slice(at[i]!, end))
  })

describe.each(Object.keys(text) as (keyof typeof text)[])('%s', (name) => {
  const format = toolFormat(templates[name])

  it('is told by its template, and its calls are read however the text is cut', () => {
    expect(format.name).toBe(name)
    fc.assert(
      fc.property(cut(text[name]), (pieces) => {
        const { text, calls } = read(format, pieces)
        expect(text).toBe('Let me see.')
        expect(calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([
          ['weather', { city: 'Oslo <3' }],
          ['time', {}],
        ])
      }),
    )
  })

  it('reads a marker within a string of the arguments as the string', () => {
    const written = JSON.stringify({ city: `"${format.close}\\` }).slice(1, -1)
    const whole = text[name].replace('"city": "Oslo <3"', () => written)
    fc.assert(
      fc.property(cut(whole), (pieces) => {
        const { text, calls } = read(format, pieces)
        expect(text).toBe('Let me see.')
        expect(calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([
          ['weather', { city: `"${format.close}\\` }],
          ['time', {}],
        ])
      }),
    )
  })

  it('looks through a long string of markers once', () => {
    const marks = format.close.repeat(5000)
    const whole = text[name].replace('Oslo <3', () => marks)
    const { calls } = read(format, whole.split(/(?<=>)/))
    expect(JSON.parse(calls[0]!.arguments)).toEqual({ city: marks })
  }, 5000)

  it('goes on after a string that never ends', () => {
    for (const rest of ['', '\n']) {
      const broken = `${format.open}{"name": "x${format.close}`
      const { text: told, calls } = read(format, [...broken, rest, ...text[name].slice(11)])
      expect(told).toBe(broken + rest)
      expect(calls.map((call) => call.name)).toEqual(['weather', 'time'])
    }
  })

  it('gives back as text what is no call', () => {
    for (const other of ['a < b', `${format.open}nothing${format.close}`, 'so <tool', `${format.open}{"name": "x`])
      expect(read(format, [...other])).toEqual({ text: other, calls: [] })
  })

  it('forces a call whose arguments follow the schema', () => {
    const parameters = { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] }
    const { begin, rest } = forcedCall(format, [{ name: 'add', parameters }])
    const automaton = new Automaton(rest)
    const accepts = (written: string) => {
      let state: ReturnType<Automaton['step']> = automaton.start
      for (const code of new TextEncoder().encode(written)) state = state && automaton.step(state, code)
      return state?.accepting === true && state.stacks.length === 0
    }
    const [, middle, end] = format.around
    const written = `${middle.slice(middle.trimEnd().length)}{"n":12}${end}`
    expect(accepts(written)).toBe(true)
    expect(accepts(written.replace('12', '"x"'))).toBe(false)
    const begun = begin.slice(begin.indexOf(format.open) + format.open.length)
    expect(read(format, [...written], begun)).toEqual({ text: '', calls: [{ name: 'add', arguments: '{"n":12}' }] })
    expect(read(format, ['{"n":'], begun)).toEqual({ text: '{"n":', calls: [] })
    expect(read(format, [`no${format.close} more`], begun)).toEqual({ text: `no${format.close} more`, calls: [] })
  })
})

it('lets the model choose among tools, except where a special token stands after the name', () => {
  const tools = [{ name: 'a' }, { name: 'b' }]
  for (const name of ['deepseek-v3', 'hermes', 'json'] as const)
    expect(forcedCall(toolFormat(templates[name]), tools).rest.kind).toBe('choice')
  for (const name of ['deepseek-v3.1', 'kimi-k2'] as const)
    expect(() => forcedCall(toolFormat(templates[name]), tools)).toThrow(UnsupportedError)
})

it('never looks for calls in the text of a model that was trained on none', () => {
  expect(read(toolFormat(templates.json), ['{"name": "x", "arguments": {}}']).calls).toEqual([])
})

it('shows the markers that are special tokens, and no other', () => {
  const ids = new Map([
    ['<tool_call>', 0],
    ['<|other|>', 1],
    ['h', 2],
  ])
  const vocabulary = new Vocabulary(
    { get_vocab: (added) => (added ? ids : new Map([['h', 2]])), id_to_token: () => undefined },
    3,
  )
  const shown = new Set(toolMarkers(toolFormat(templates.hermes)))
  const assembler = new TextAssembler(vocabulary, [], shown)
  expect([2, 0, 1, 2].map((token) => assembler.push(token))).toEqual(['h', '<tool_call>', '', 'h'])
})
