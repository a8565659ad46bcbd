import { join } from 'node:path'
import { InvalidArgumentError } from '@flashmla/spec'
import { Template } from '@huggingface/jinja'
import { readJsonObject, readText } from './checkpoint/json-file'
import { tokenText } from './tokenizer'

export interface ChatMessage {
  readonly role: string
  readonly content: string
  /** Whatever else the model's template reads: name, tool_calls, tool_call_id. */
  readonly [field: string]: unknown
}

/** For base models, which were trained on no chat format. */
const plain = `{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}assistant:`

/** Turns messages to the text that the model was trained on. */
export class ChatTemplate {
  readonly #template: Template

  /** @throws InvalidArgumentError when the source is no Jinja template */
  constructor(
    readonly source: string = plain,
    private readonly eosToken = '',
    /** Empty where the tokenizer adds it. */
    private readonly bosToken = '',
  ) {
    try {
      this.#template = new Template(source)
    } catch (error) {
      throw new InvalidArgumentError(
        `The chat template can't be read: ${(error as Error).message}.`,
        'Compare it with the one that the model was published with.',
      )
    }
  }

  /**
   * Reads chat_template.jinja, else the chat_template of tokenizer_config.json (the one named default, where there are
   * several), else takes a plain one.
   * @throws CheckpointError when one of the files can't be read, InvalidArgumentError when the template is none
   */
  static async load(directory: string): Promise<ChatTemplate> {
    const config = (await readJsonObject(join(directory, 'tokenizer_config.json'))) ?? {}
    const separate = await readText(join(directory, 'chat_template.jinja'))
    const bos = config.add_bos_token === false ? tokenText(config.bos_token) : ''
    return new ChatTemplate(separate ?? chosen(config.chat_template), tokenText(config.eos_token), bos)
  }

  /**
   * The prompt, up to where the assistant's answer begins. The tokenizer adds the beginning-of-sequence token itself, unless
   * `add_bos_token` is false: then the template may.
   * @throws InvalidArgumentError when the template refuses the messages
   */
  render(messages: readonly ChatMessage[], tools?: readonly unknown[]): string {
    try {
      return this.#template.render({
        messages: [...messages],
        tools: tools ? [...tools] : null,
        add_generation_prompt: true,
        bos_token: this.bosToken,
        eos_token: this.eosToken,
      })
    } catch (error) {
      throw new InvalidArgumentError(
        `The chat template refuses these messages: ${(error as Error).message}.`,
        'Give the roles and their order that the model was trained on.',
      )
    }
  }
}

function chosen(template: unknown): string | undefined {
  if (typeof template === 'string') return template
  if (!Array.isArray(template)) return undefined
  const isNamed = (each: unknown): each is { name?: unknown; template: string } =>
    typeof (each as { template?: unknown } | null)?.template === 'string'
  const named = template.filter(isNamed)
  return (named.find(({ name }) => name === 'default') ?? named[0])?.template
}
