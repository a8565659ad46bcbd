import { InvalidArgumentError } from '@flashmla/spec'
import type { TokenConstraint } from '../scheduler/request'
import type { State } from './automaton'
import { Automaton } from './automaton'
import type { Rule } from './rule'
import type { Vocabulary } from './vocabulary'

interface TrieNode {
  readonly children: Map<number, TrieNode>
  readonly tokens: number[]
}

/** States after which a grammar's memory is begun anew, so that an unbounded one can't fill it. */
const maxStates = 20_000

/** The tokens of a vocabulary as a trie of their bytes, for asking which of them a grammar allows next. */
export class TokenTrie {
  readonly root: TrieNode = { children: new Map(), tokens: [] }

  constructor(readonly vocabulary: Vocabulary) {
    for (let id = 0; id < vocabulary.size; id++) {
      const bytes = vocabulary.bytes(id)
      if (bytes.length === 0) continue
      let node = this.root
      for (const code of bytes) {
        let child = node.children.get(code)
        if (!child) {
          child = { children: new Map(), tokens: [] }
          node.children.set(code, child)
        }
        node = child
      }
      node.tokens.push(id)
    }
  }
}

/** A grammar compiled for a vocabulary. Masks are remembered by state and shared by all its constraints. */
export class TokenGrammar {
  automaton: Automaton
  #masks = new WeakMap<State, Uint32Array>()

  constructor(
    private readonly rule: Rule,
    private readonly trie: TokenTrie,
    private readonly endTokens: readonly number[],
  ) {
    this.automaton = new Automaton(rule)
  }

  /** A fresh constraint, at the beginning of the grammar. */
  constraint(): TokenConstraint {
    if (this.automaton.size > maxStates) this.automaton = new Automaton(this.rule)
    return new GrammarConstraint(this, this.automaton, this.trie.vocabulary)
  }

  /** Bit t of word t >> 5: token t may come in this state. End tokens may where the text may end. */
  mask(automaton: Automaton, state: State): Uint32Array {
    const known = this.#masks.get(state)
    if (known) return known
    const mask = new Uint32Array(Math.ceil(this.trie.vocabulary.size / 32))
    const allow = (id: number) => {
      mask[id >> 5]! |= 1 << (id & 31)
    }
    const walk = (node: TrieNode, at: State) => {
      for (const [code, child] of node.children) {
        const next = automaton.step(at, code)
        if (!next) continue
        for (const id of child.tokens) allow(id)
        walk(child, next)
      }
    }
    walk(this.trie.root, state)
    if (state.accepting) for (const id of this.endTokens) allow(id)
    this.#masks.set(state, mask)
    return mask
  }
}

class GrammarConstraint implements TokenConstraint {
  #state: State

  constructor(
    private readonly grammar: TokenGrammar,
    private readonly automaton: Automaton,
    private readonly vocabulary: Vocabulary,
  ) {
    this.#state = automaton.start
  }

  mask(): Uint32Array {
    return this.grammar.mask(this.automaton, this.#state)
  }

  accept(token: number): void {
    let state: State | null = this.#state
    for (const code of this.vocabulary.bytes(token)) {
      state = state && this.automaton.step(state, code)
    }
    if (!state)
      throw new InvalidArgumentError(`Token ${token} is not allowed here.`, 'Choose one that the mask allows.')
    this.#state = state
  }

  get ended(): boolean {
    return this.#state.accepting && this.#state.stacks.length === 0
  }
}
