import { InvalidArgumentError } from '@flashmla/spec'
import type { Rule } from './rule'

/** What remains to be matched: a rule, then the rest. Interned, so equal stacks are one object. */
interface Stack {
  readonly id: number
  readonly rule: Rule
  readonly rest: Stack | undefined
}

/** A set of stacks, each headed by a byte rule, and whether nothing need follow. */
export interface State {
  readonly id: number
  readonly stacks: readonly Stack[]
  readonly accepting: boolean
  readonly next: (State | null | undefined)[]
}

/**
 * A pushdown automaton over bytes, made deterministic as it is walked: states are interned sets of stacks and
 * transitions are remembered, so that a byte costs one array access once its like has been seen.
 */
export class Automaton {
  readonly start: State
  readonly #stacks = new Map<string, Stack>()
  readonly #states = new Map<string, State>()
  readonly #ruleIds = new Map<Rule, number>()
  readonly #repeats = new Map<string, Rule>()

  /** @throws InvalidArgumentError when what may be left out in a row is more than can be looked through */
  constructor(root: Rule) {
    const stacks = new Set<Stack>()
    const accepting = bounded(() => this.#expand(root, undefined, stacks, new Set()))
    this.start = this.#state(stacks, accepting)
  }

  /** States seen so far. */
  get size(): number {
    return this.#states.size
  }

  /** The state after a byte; null when the byte can't come. @throws InvalidArgumentError as the constructor does */
  step(state: State, code: number): State | null {
    const known = state.next[code]
    if (known !== undefined) return known
    const stacks = new Set<Stack>()
    let accepting = false
    for (const { rule, rest } of state.stacks) {
      if (rule.kind !== 'byte' || rule.set[code] === 0) continue
      if (bounded(() => this.#continue(rest, stacks, new Set()))) accepting = true
    }
    const next = stacks.size > 0 || accepting ? this.#state(stacks, accepting) : null
    state.next[code] = next
    return next
  }

  /** Adds the stacks of byte rules that `rule` then `rest` can begin with; true when both can be empty. */
  #expand(rule: Rule, rest: Stack | undefined, out: Set<Stack>, seen: Set<Stack>): boolean {
    switch (rule.kind) {
      case 'empty':
        return this.#continue(rest, out, seen)
      case 'byte':
        out.add(this.#stack(rule, rest))
        return false
      case 'sequence':
        return this.#expand(rule.first, this.#stack(rule.rest, rest), out, seen)
      case 'choice': {
        let accepting = false
        for (const each of rule.of) if (this.#expand(each, rest, out, seen)) accepting = true
        return accepting
      }
      case 'repeat': {
        let accepting = rule.min === 0 && this.#continue(rest, out, seen)
        if (rule.max > 0) {
          const again = this.#stack(this.#fewer(rule), rest)
          // A repeated rule that matched nothing leads back here: once is enough.
          if (!seen.has(again)) {
            seen.add(again)
            if (this.#expand(rule.rule, again, out, seen)) accepting = true
          }
        }
        return accepting
      }
      case 'lazy': {
        const here = this.#stack(rule, rest)
        if (seen.has(here)) return false
        seen.add(here)
        return this.#expand(rule.make(), rest, out, seen)
      }
    }
  }

  #continue(rest: Stack | undefined, out: Set<Stack>, seen: Set<Stack>): boolean {
    return rest ? this.#expand(rest.rule, rest.rest, out, seen) : true
  }

  #fewer(rule: Rule & { kind: 'repeat' }): Rule {
    const min = Math.max(0, rule.min - 1)
    const max = rule.max - 1
    if (min === rule.min && max === rule.max) return rule
    const key = `${this.#ruleId(rule.rule)} ${min} ${max}`
    let fewer = this.#repeats.get(key)
    if (!fewer) {
      fewer = { kind: 'repeat', rule: rule.rule, min, max }
      this.#repeats.set(key, fewer)
    }
    return fewer
  }

  #ruleId(rule: Rule): number {
    let id = this.#ruleIds.get(rule)
    if (id === undefined) {
      id = this.#ruleIds.size
      this.#ruleIds.set(rule, id)
    }
    return id
  }

  #stack(rule: Rule, rest: Stack | undefined): Stack {
    const key = `${this.#ruleId(rule)} ${rest?.id ?? -1}`
    let stack = this.#stacks.get(key)
    if (!stack) {
      stack = { id: this.#stacks.size, rule, rest }
      this.#stacks.set(key, stack)
    }
    return stack
  }

  #state(stacks: Set<Stack>, accepting: boolean): State {
    const sorted = [...stacks].sort((a, b) => a.id - b.id)
    const key = `${accepting} ${sorted.map(({ id }) => id).join()}`
    let state = this.#states.get(key)
    if (!state) {
      state = { id: this.#states.size, stacks: sorted, accepting, next: [] }
      this.#states.set(key, state)
    }
    return state
  }
}

/** The search recurses over what may be left out, thousands of optional properties for instance. */
function bounded(search: () => boolean): boolean {
  try {
    return search()
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new InvalidArgumentError(
      'The grammar has too many optional parts in a row.',
      'Require some of the properties, or ask for fewer.',
    )
  }
}
