import { jsonObject, jsonSchemaRule, TokenGrammar, TokenTrie, type Vocabulary } from '@flashmla/engine'
import type { GrammarFormat } from './context'

/** Compiles response formats, and remembers the latest of them. */
export function grammarCache(vocabulary: Vocabulary, eosTokenIds: readonly number[], size = 64) {
  let trie: TokenTrie | undefined
  const made = new Map<string, TokenGrammar>()
  return (format: GrammarFormat): TokenGrammar => {
    const key = format.type === 'json_object' ? '' : JSON.stringify(format.schema)
    let grammar = made.get(key)
    if (grammar) made.delete(key)
    else {
      trie ??= new TokenTrie(vocabulary)
      grammar = new TokenGrammar(
        format.type === 'json_object' ? jsonObject : jsonSchemaRule(format.schema),
        trie,
        eosTokenIds,
      )
    }
    made.set(key, grammar)
    if (made.size > size) made.delete(made.keys().next().value!)
    return grammar
  }
}
