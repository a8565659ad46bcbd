import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Template } from '@huggingface/jinja'
import { HttpError } from './errors'
import type { ChatBody, Message } from './schemas'

/** For base models, which were trained on no chat format. */
const plainTemplate = `{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}assistant:`

/** Turns messages and tools to the text that the model was trained on. */
export class ChatPrompt {
  readonly #template: Template

  constructor(
    source: string | undefined,
    private readonly tokens: { readonly bos_token: string; readonly eos_token: string },
  ) {
    this.#template = new Template(source ?? plainTemplate)
  }

  /** Reads chat_template.jinja, else tokenizer_config.json's chat_template, else takes a plain one. */
  static async load(directory: string): Promise<ChatPrompt> {
    const read = (name: string) => readFile(join(directory, name), 'utf8').catch(() => undefined)
    const config = JSON.parse((await read('tokenizer_config.json')) ?? '{}')
    const special = (value: unknown) =>
      typeof value === 'string' ? value : ((value as { content?: string })?.content ?? '')
    const source =
      (await read('chat_template.jinja')) ??
      (typeof config.chat_template === 'string' ? config.chat_template : undefined)
    return new ChatPrompt(source, { bos_token: special(config.bos_token), eos_token: special(config.eos_token) })
  }

  /** @throws HttpError 400 when the template refuses the messages */
  render(body: Pick<ChatBody, 'messages' | 'tools'>): string {
    try {
      return this.#template.render({
        messages: body.messages.map(flatten),
        tools: body.tools ?? null,
        add_generation_prompt: true,
        // The tokenizer adds the beginning-of-sequence token itself.
        ...this.tokens,
        bos_token: '',
      })
    } catch (error) {
      throw new HttpError(400, `The chat template refuses these messages: ${(error as Error).message}`, {
        param: 'messages',
      })
    }
  }
}

function flatten({ content, ...rest }: Message) {
  const text = Array.isArray(content) ? content.map((part) => part.text).join('') : (content ?? '')
  return { ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined)), content: text }
}
