import { randomUUID } from 'node:crypto'
import type { ParsedPiece, ToolFormat, ToolSpec } from '@flashmla/engine'
import { forcedCall, ToolCallParser, toolFormat, toolMarkers } from '@flashmla/engine'
import type { GrammarFormat } from './context'
import { HttpError } from './errors'
import type { ChoiceEvent } from './generation'
import type { ChatBody, Tool } from './schemas'

/** A call in a streamed chunk; whole when it comes. */
export interface ToolCallDelta {
  readonly index: number
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

/** How a request uses its tools. */
export interface ToolUse {
  readonly format: ToolFormat
  /** What the chat template is given. */
  readonly tools: readonly Tool[]
  readonly shown: ReadonlySet<string>
  /** Where a call is forced: what the prompt ends with, and the grammar of the rest. */
  readonly begin: string
  readonly follow: GrammarFormat | undefined
  /** One for each sample. */
  reader(): ToolCallReader
}

/** Undefined where no tool may be called. @throws HttpError for a choice that can't be followed */
export function planToolUse(template: string, body: ChatBody): ToolUse | undefined {
  const { tools = [], tool_choice: choice = 'auto' } = body
  const refuse = (message: string): never => {
    throw new HttpError(400, message, { code: 'invalid_value', param: 'tool_choice' })
  }
  const forced = choice !== 'auto' && choice !== 'none'
  if (forced && tools.length === 0) refuse('tool_choice asks for a call, but there are no tools.')
  if (tools.length === 0 || choice === 'none') return undefined
  const format = toolFormat(template)
  const shown = new Set(toolMarkers(format))
  const single = body.parallel_tool_calls === false
  if (!forced)
    return {
      format,
      tools,
      shown,
      begin: '',
      follow: undefined,
      reader: () => new ToolCallReader(format, undefined, single),
    }
  if (body.response_format && body.response_format.type !== 'text')
    refuse('A forced tool call and a response_format can not both be followed.')
  const wanted =
    typeof choice === 'string' ? tools : tools.filter((tool) => tool.function.name === choice.function.name)
  if (wanted.length === 0) refuse(`tool_choice names a tool that is not given: ${JSON.stringify(choice)}.`)
  const specs = wanted.map(
    ({ function: { name, parameters } }): ToolSpec => ({ name, ...(parameters ? { parameters } : {}) }),
  )
  const { begin } = forcedCall(format, specs)
  const begun = begin.slice(begin.indexOf(format.open) + format.open.length)
  return {
    format,
    tools,
    shown,
    begin,
    follow: { type: 'tool_call', format, tools: specs },
    reader: () => new ToolCallReader(format, begun, true),
  }
}

/** Reads the calls out of the events of one sample. */
export class ToolCallReader {
  readonly #parser: ToolCallParser
  #calls = 0

  constructor(
    format: ToolFormat,
    begun: string | undefined,
    private readonly single: boolean,
  ) {
    this.#parser = new ToolCallParser(format, begun)
  }

  get called(): boolean {
    return this.#calls > 0
  }

  read(event: ChoiceEvent): { text: string; calls: readonly ToolCallDelta[] } {
    const pushed = this.#parser.push(event.text)
    if (event.type === 'token') return { text: pushed.text, calls: this.#number(pushed) }
    const flushed = this.#parser.flush()
    return { text: pushed.text + flushed.text, calls: [...this.#number(pushed), ...this.#number(flushed)] }
  }

  #number({ calls }: ParsedPiece): ToolCallDelta[] {
    const told = this.single ? calls.slice(0, Math.max(0, 1 - this.#calls)) : calls
    return told.map((call) => ({
      index: this.#calls++,
      id: `call_${randomUUID().replaceAll('-', '')}`,
      type: 'function',
      function: { name: call.name, arguments: call.arguments },
    }))
  }
}

/** A call of an earlier answer, with its arguments as the model's template takes them. */
export function pastCall(call: Record<string, unknown>, format: ToolFormat | undefined): Record<string, unknown> {
  const { function: called } = call as { function?: { arguments?: unknown } }
  if (format?.past !== 'object' || typeof called?.arguments !== 'string') return call
  try {
    return { ...call, function: { ...called, arguments: JSON.parse(called.arguments) } }
  } catch {
    return call
  }
}
