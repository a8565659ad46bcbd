import { z } from '@hono/zod-openapi'

const optional = <T extends z.ZodType>(type: T) => type.nullish().transform((value) => value ?? undefined)

/** Fields that completions and chat completions share, OpenAI's first, then extensions that others serve too. */
const sampling = {
  model: optional(z.string()).openapi({ description: 'The id that /v1/models gives.' }),
  temperature: optional(z.number().min(0).max(2)).openapi({ description: '0 is greedy. Default 1.' }),
  top_p: optional(z.number().min(0).max(1)),
  n: optional(z.int().min(1).max(16)),
  stop: optional(
    z.union([z.string().min(1), z.array(z.string().min(1)).max(4)], 'expected a string or up to 4, none of them empty'),
  ),
  seed: optional(z.int()),
  presence_penalty: optional(z.number().min(-2).max(2)),
  frequency_penalty: optional(z.number().min(-2).max(2)),
  logit_bias: optional(z.record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100))),
  max_tokens: optional(z.int().min(0)),
  stream: optional(z.boolean()),
  stream_options: optional(z.object({ include_usage: optional(z.boolean()) })),
  user: optional(z.string()),
  top_k: optional(z.int().min(0)).openapi({ description: 'Extension: 0 keeps all tokens.' }),
  min_p: optional(z.number().min(0).max(1)).openapi({ description: 'Extension.' }),
  repetition_penalty: optional(z.number().min(0.01).max(100)).openapi({ description: 'Extension: 1 is off.' }),
  ignore_eos: optional(z.boolean()).openapi({ description: 'Extension: goes on past the end-of-sequence token.' }),
  priority: optional(z.int().min(0).max(100)).openapi({ description: 'Extension: lower is served first. Default 0.' }),
  speculate: optional(z.int().min(0).max(16)).openapi({ description: 'Extension: prompt-lookup draft tokens a step.' }),
  response_format: optional(
    z.discriminatedUnion('type', [
      z.object({ type: z.literal('text') }),
      z.object({ type: z.literal('json_object') }),
      z.object({
        type: z.literal('json_schema'),
        json_schema: z.object({
          name: optional(z.string()),
          description: optional(z.string()),
          strict: optional(z.boolean()),
          schema: z.record(z.string(), z.unknown()),
        }),
      }),
    ]),
  ),
}

const tokenIds = z.array(z.int().min(0)).min(1)

export const CompletionRequest = z
  .object({
    ...sampling,
    prompt: z.union(
      [z.string(), z.array(z.string()).min(1).max(16), tokenIds, z.array(tokenIds).min(1).max(16)],
      'expected a string, an array of token ids, or an array of up to 16 of either',
    ),
    max_tokens: sampling.max_tokens.openapi({ description: 'Default 16.' }),
    logprobs: optional(z.int().min(0).max(5)),
    echo: optional(z.boolean()),
    suffix: optional(z.string()),
    best_of: optional(z.int()),
  })
  .openapi('CompletionRequest')

const contentPart = z.object({ type: z.literal('text'), text: z.string() })

const message = z.object({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']),
  content: optional(
    z.union([z.string(), z.array(contentPart)], 'expected a string or an array of parts of the type "text"'),
  ),
  name: optional(z.string()),
  tool_calls: optional(z.array(z.record(z.string(), z.unknown()))),
  tool_call_id: optional(z.string()),
})

const tool = z.looseObject({
  type: z.literal('function'),
  function: z.looseObject({
    name: z.string().regex(/^[a-zA-Z0-9_-]{1,64}$/),
    description: optional(z.string()),
    parameters: optional(z.record(z.string(), z.unknown())),
  }),
})

export const ChatRequest = z
  .object({
    ...sampling,
    messages: z.array(message).min(1),
    max_completion_tokens: optional(z.int().min(0)),
    logprobs: optional(z.boolean()),
    top_logprobs: optional(z.int().min(0).max(20)),
    tools: optional(z.array(tool).max(128)),
    tool_choice: optional(
      z.union(
        [
          z.enum(['none', 'auto', 'required']),
          z.object({ type: z.literal('function'), function: z.object({ name: z.string() }) }),
        ],
        'expected "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
      ),
    ).openapi({ description: 'required and a named function are enforced by a grammar, one call an answer.' }),
    parallel_tool_calls: optional(z.boolean()).openapi({ description: 'false: one call an answer at most.' }),
  })
  .openapi('ChatCompletionRequest')

export type CompletionBody = z.output<typeof CompletionRequest>
export type ChatBody = z.output<typeof ChatRequest>
export type Message = ChatBody['messages'][number]
export type Tool = z.output<typeof tool>
export type SharedBody = Pick<CompletionBody, Exclude<keyof typeof sampling, 'max_tokens'>> & {
  max_tokens?: number | undefined
}

const usage = z.object({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
  prompt_tokens_details: z.object({ cached_tokens: z.int() }),
})

export type Usage = z.output<typeof usage>

const finishReason = z.enum(['stop', 'length']).nullable()

export const CompletionResponse = z
  .object({
    id: z.string(),
    object: z.literal('text_completion'),
    created: z.int(),
    model: z.string(),
    choices: z.array(
      z.object({
        index: z.int(),
        text: z.string(),
        finish_reason: finishReason,
        logprobs: z
          .object({
            tokens: z.array(z.string()),
            token_logprobs: z.array(z.number()),
            top_logprobs: z.array(z.record(z.string(), z.number())),
            text_offset: z.array(z.int()),
          })
          .nullable(),
      }),
    ),
    usage: usage.optional(),
  })
  .openapi('CompletionResponse')

const tokenLogprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()) })

const toolCall = z.object({
  id: z.string(),
  type: z.literal('function'),
  function: z.object({ name: z.string(), arguments: z.string() }),
})

export const ChatResponse = z
  .object({
    id: z.string(),
    object: z.literal('chat.completion'),
    created: z.int(),
    model: z.string(),
    choices: z.array(
      z.object({
        index: z.int(),
        message: z.object({
          role: z.literal('assistant'),
          content: z.string().nullable(),
          refusal: z.null(),
          tool_calls: z.array(toolCall).optional(),
        }),
        finish_reason: z.enum(['stop', 'length', 'tool_calls']).nullable(),
        logprobs: z
          .object({ content: z.array(tokenLogprob.extend({ top_logprobs: z.array(tokenLogprob) })), refusal: z.null() })
          .nullable(),
      }),
    ),
    usage: usage.optional(),
  })
  .openapi('ChatCompletionResponse')

export const ModelCard = z
  .object({ id: z.string(), object: z.literal('model'), created: z.int(), owned_by: z.string() })
  .openapi('Model')

export const ModelList = z.object({ object: z.literal('list'), data: z.array(ModelCard) }).openapi('ModelList')

export const ErrorResponse = z
  .object({
    error: z.object({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string().nullable(),
    }),
  })
  .openapi('ErrorResponse')
