import { UnsupportedError } from '@flashmla/spec'
import { jsonObject, jsonSchemaRule } from '../grammar/json-schema'
import type { Rule } from '../grammar/rule'
import { choice, sequence, text } from '../grammar/rule'

export interface ToolCall {
  readonly name: string
  /** A JSON text, as the model wrote it. */
  readonly arguments: string
}

/** A function that the model may call: its name, and the JSON Schema of its arguments (any object without one). */
export interface ToolSpec {
  readonly name: string
  readonly parameters?: unknown
}

/** How a model family writes calls of tools into its text. */
export interface ToolFormat {
  readonly name: 'deepseek-v3' | 'deepseek-v3.1' | 'kimi-k2' | 'hermes' | 'json'
  /** What stands around all calls, where there is such, and around each one. Empty `open`: calls are never looked for. */
  readonly section: readonly [open: string, close: string] | undefined
  readonly open: string
  readonly close: string
  /** The call that a text between `open` and `close` is; undefined when it is none. */
  parse(body: string): ToolCall | undefined
  /** What stands between `open` and the name of a call, between its name and its arguments, and after these. */
  readonly around: readonly [lead: string, middle: string, end: string]
  /** How the chat template takes the arguments of past calls. */
  readonly past: 'object' | 'text'
}

const sep = '<｜tool▁sep｜>'
const deepseek = {
  section: ['<｜tool▁calls▁begin｜>', '<｜tool▁calls▁end｜>'],
  open: '<｜tool▁call▁begin｜>',
  close: '<｜tool▁call▁end｜>',
} as const

const deepseekV3: ToolFormat = {
  ...deepseek,
  name: 'deepseek-v3',
  parse(body) {
    const [, name, args] = /^function<｜tool▁sep｜>([^\n]+)\n```json\n([\s\S]*?)\n?```\s*$/.exec(body) ?? []
    return call(name, args)
  },
  around: [`function${sep}`, '\n```json\n', '\n```'],
  past: 'text',
}

const deepseekV31: ToolFormat = {
  ...deepseek,
  name: 'deepseek-v3.1',
  parse(body) {
    const at = body.indexOf(sep)
    return at < 0 ? undefined : call(body.slice(0, at), body.slice(at + sep.length))
  },
  around: ['', sep, ''],
  past: 'text',
}

const kimiArguments = '<|tool_call_argument_begin|>'
const kimiK2: ToolFormat = {
  name: 'kimi-k2',
  section: ['<|tool_calls_section_begin|>', '<|tool_calls_section_end|>'],
  open: '<|tool_call_begin|>',
  close: '<|tool_call_end|>',
  parse(body) {
    const at = body.indexOf(kimiArguments)
    if (at < 0) return undefined
    // functions.NAME:INDEX
    const name = body
      .slice(0, at)
      .trim()
      .replace(/^functions\./, '')
      .replace(/:\d+$/, '')
    return call(name, body.slice(at + kimiArguments.length))
  },
  around: ['functions.', `:0${kimiArguments}`, ''],
  past: 'text',
}

const hermes: ToolFormat = {
  name: 'hermes',
  section: undefined,
  open: '<tool_call>',
  close: '</tool_call>',
  parse: parseObject,
  around: ['\n{"name": "', '", "arguments": ', '}\n'],
  past: 'object',
}

/** For models that were trained on no calls: never looked for in what they write, but a forced call can be made. */
const json: ToolFormat = {
  name: 'json',
  section: undefined,
  open: '',
  close: '',
  parse: parseObject,
  around: ['{"name": "', '", "arguments": ', '}'],
  past: 'text',
}

/** The format that a chat template writes. */
export function toolFormat(template: string): ToolFormat {
  if (template.includes(deepseek.open)) return template.includes('```json') ? deepseekV3 : deepseekV31
  if (template.includes(kimiK2.open)) return kimiK2
  return template.includes(hermes.open) ? hermes : json
}

/** Tokens of the format that a vocabulary may hold as special ones, whose text is wanted all the same. */
export function toolMarkers({ section = ['', ''], open, close, name }: ToolFormat): readonly string[] {
  const inner = name === 'kimi-k2' ? [kimiArguments] : name.startsWith('deepseek') ? [sep] : []
  return [...section, open, close, ...inner].filter(Boolean)
}

/**
 * A forced call of one of `tools`: the beginning that the prompt is continued with, and the grammar of the rest. A call of
 * one tool begins with its name; of several, the model chooses. Special tokens have no bytes for a grammar to ask for:
 * those before the name stand in the beginning, and a format that has one after the name is forced name by name.
 * @throws UnsupportedError for a choice that the format can't leave to the model, and for a schema that can't be followed
 */
export function forcedCall(format: ToolFormat, tools: readonly ToolSpec[]): { begin: string; rest: Rule } {
  const { section, open } = format
  const [lead, middle, end] = format.around
  const begin = `${section?.[0] ?? ''}${open}${lead}`
  const args = ({ parameters }: ToolSpec) =>
    sequence(parameters === undefined ? jsonObject : jsonSchemaRule(parameters), text(end))
  if (tools.length === 1) {
    const before = middle.trimEnd()
    return {
      begin: begin + tools[0]!.name + before,
      rest: sequence(text(middle.slice(before.length)), args(tools[0]!)),
    }
  }
  if (toolMarkers(format).some((marker) => middle.includes(marker)))
    throw new UnsupportedError(
      `A call in the format ${format.name} can't be forced while ${tools.length} tools are given to choose from.`,
      'Name the tool in tool_choice, or give one tool.',
    )
  return { begin, rest: choice(...tools.map((tool) => sequence(text(tool.name + middle), args(tool)))) }
}

function parseObject(body: string): ToolCall | undefined {
  const value = parseJson(body)
  if (typeof value !== 'object' || value === null) return undefined
  const { name, arguments: args, parameters } = value as Record<string, unknown>
  const given = args ?? parameters ?? {}
  if (typeof name !== 'string' || name === '') return undefined
  return { name, arguments: typeof given === 'string' ? given : JSON.stringify(given) }
}

/** A call whose arguments are JSON. */
function call(name: string | undefined, args: string | undefined): ToolCall | undefined {
  if (!name?.trim() || args === undefined || parseJson(args) === undefined) return undefined
  return { name: name.trim(), arguments: args.trim() }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
