import type { Rule, Vocabulary } from '@flashmla/engine'
import { forcedCall, jsonObject, jsonSchemaRule, TokenGrammar, TokenTrie } from '@flashmla/engine'
import type { GrammarFormat } from './context'
import { HttpError } from './errors'

/** Compiles response formats, and remembers the latest of them. */
export function grammarCache(vocabulary: Vocabulary, eosTokenIds: readonly number[], size = 64) {
  let trie: TokenTrie | undefined
  const made = new Map<string, TokenGrammar>()
  const compile = (format: GrammarFormat): TokenGrammar => {
    const key = keyOf(format)
    let grammar = made.get(key)
    if (grammar) made.delete(key)
    else {
      trie ??= new TokenTrie(vocabulary)
      grammar = new TokenGrammar(ruleOf(format), trie, eosTokenIds)
    }
    made.set(key, grammar)
    if (made.size > size) made.delete(made.keys().next().value!)
    return grammar
  }
  return (format: GrammarFormat): TokenGrammar => {
    try {
      return compile(format)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      throw new HttpError(400, 'The JSON schema is nested too deeply. Give a flatter one.', {
        code: 'invalid_value',
      })
    }
  }
}

function keyOf(format: GrammarFormat): string {
  if (format.type === 'json_object') return ''
  if (format.type === 'json_schema') return JSON.stringify(format.schema)
  return `${format.format.name} ${JSON.stringify(format.tools)}`
}

function ruleOf(format: GrammarFormat): Rule {
  if (format.type === 'json_object') return jsonObject
  if (format.type === 'json_schema') return jsonSchemaRule(format.schema)
  return forcedCall(format.format, format.tools).rest
}
