import type { PagedKvCache } from '@flashmla/kv-cache'
import type { Branch } from './branch'
import { servedBefore } from './branch'
import type { Drafter } from './drafter'
import { safeDraft } from './drafter'
import { awaitsPrefill } from './shared-prefill'

/** One branch's share of a step: its next `tokens` uncached ones, and `draft` guesses after them. */
export interface Scheduled {
  readonly branch: Branch
  readonly tokens: readonly number[]
  /** How many of `tokens` are guesses. */
  readonly drafted: number
  /** True when the step reaches the last known token, so that the next one can be sampled. */
  readonly samples: boolean
}

export interface SchedulerLimits {
  readonly maxBatchSize: number
  readonly maxBatchTokens: number
  /** Prompt tokens of one sequence that a step takes. */
  readonly prefillChunk: number
  /** Pages that admission leaves free, so that running sequences can grow. */
  readonly watermarkPages: number
  readonly vocabSize: number
  /** Whether pages of one prompt can be found by another. */
  readonly sharesPrefixes: boolean
}

/**
 * Decides what runs in a step, in this order: decodes, then prefill chunks, both first come first served within
 * their priority; then waiting branches while slots, tokens and pages last. When pages run out, the branch that
 * would be served last gives its pages back and waits at the front of its order to be recomputed. Of waiting branches
 * that begin alike one computes the common pages, and the others wait for them.
 */
export class Scheduler {
  readonly waiting: Branch[] = []
  readonly running: Branch[] = []
  preemptions = 0

  constructor(
    private readonly cache: PagedKvCache,
    private readonly limits: SchedulerLimits,
    private readonly drafter: Drafter,
  ) {}

  enqueue(branch: Branch): void {
    insert(this.waiting, branch)
  }

  /** Adds a branch that holds pages already, such as a fork. */
  adopt(branch: Branch): void {
    insert(this.running, branch)
  }

  /** Forgets a branch and frees its pages. */
  remove(branch: Branch): void {
    branch.release()
    for (const list of [this.waiting, this.running]) {
      const at = list.indexOf(branch)
      if (at >= 0) list.splice(at, 1)
    }
  }

  /** Takes a branch's pages and lets it wait to be recomputed. */
  preempt(branch: Branch): void {
    this.remove(branch)
    this.enqueue(branch)
  }

  schedule(): Scheduled[] {
    const step = new Map<Branch, Scheduled>()
    const before = this.preemptions
    let budget = this.limits.maxBatchTokens
    let promised = 0
    const decodes = this.running.filter((branch) => branch.pending === 1)
    const prefills = this.running.filter((branch) => branch.pending > 1)
    for (const branch of [...decodes, ...prefills]) {
      if (budget === 0 || step.size === this.limits.maxBatchSize) break
      if (!this.running.includes(branch)) continue
      let entry = this.#share(branch, budget, decodes.length)
      let pages = branch.sequence!.pagesNeeded(entry.tokens.length)
      if (entry.drafted > 0 && this.#free < promised + pages) {
        // A guess is never worth another sequence's pages.
        entry = { branch, tokens: entry.tokens.slice(0, 1), drafted: 0, samples: true }
        pages = branch.sequence!.pagesNeeded(1)
      }
      while (this.#free < promised + pages) {
        const victim = this.running.at(-1)!
        const dropped = step.get(victim)
        if (dropped) {
          promised -= victim.sequence!.pagesNeeded(dropped.tokens.length)
          budget += dropped.tokens.length
          step.delete(victim)
        }
        this.preempt(victim)
        this.preemptions++
        if (victim === branch) break
      }
      if (!branch.sequence) continue
      step.set(branch, entry)
      promised += pages
      budget -= entry.tokens.length
    }
    if (this.preemptions === before) this.#admit(step, budget, promised)
    return [...step.values()]
  }

  /** Pages that can be taken: those that hold nothing, and those only remembered. */
  get #free(): number {
    return this.cache.pool.numFree
  }

  #admit(step: Map<Branch, Scheduled>, tokens: number, pagesPromised: number): void {
    let budget = tokens
    let promised = pagesPromised
    /** Places kept for those that wait for another's pages, so that nobody who came later takes them. */
    let kept = 0
    let at = 0
    const leaders = this.limits.sharesPrefixes
      ? [...step.values()].filter((entry) => entry.branch.pending > 1).map((entry) => entry.branch)
      : []
    while (at < this.waiting.length && budget > 0 && step.size < this.limits.maxBatchSize) {
      const branch = this.waiting[at]!
      const slots = branch.generated === 0 ? branch.job.live.size : 1
      const running = this.running.length + kept
      if (running > 0 && running + slots > this.limits.maxBatchSize) return
      // Alone, a sequence may use the whole pool; beside others it must leave them room to grow.
      const reserve = running > 0 ? this.limits.watermarkPages : 0
      if (leaders.some((leader) => awaitsPrefill(branch, leader, this.cache.pageSize))) {
        promised += Math.ceil(branch.tokens.length / this.cache.pageSize)
        if (this.#free < promised + reserve) return
        kept += slots
        at++
        continue
      }
      const sequence = this.cache.createSequence({ tokens: branch.tokens, salt: branch.job.salt })
      const cached = sequence.length
      const pages = sequence.pagesNeeded(branch.tokens.length - cached)
      if (this.#free < promised + pages + reserve) {
        sequence.free()
        return
      }
      this.waiting.splice(at, 1)
      branch.sequence = sequence
      if (branch.generated === 0) branch.job.cachedTokens = Math.max(branch.job.cachedTokens, cached)
      this.adopt(branch)
      // Without guesses: the pages were counted for what is known.
      const entry = this.#share(branch, budget, budget)
      step.set(branch, entry)
      promised += pages
      budget -= entry.tokens.length
      if (this.limits.sharesPrefixes && branch.pending > 1) leaders.push(branch)
    }
  }

  #share(branch: Branch, budget: number, decodes: number): Scheduled {
    const { tokens, computed, pending } = branch
    if (pending > 1 || branch.generated === 0) {
      const chunk = Math.min(pending, budget, this.limits.prefillChunk)
      return { branch, tokens: tokens.slice(computed, computed + chunk), drafted: 0, samples: chunk === pending }
    }
    const { job } = branch
    // Guesses share what the step's decodes leave of the budget, and stop short of the sample's last token.
    const room = Math.min(job.request.speculate ?? 0, budget - decodes, job.maxTokens - branch.generated - 1)
    const draft = room > 0 ? safeDraft(this.drafter, tokens, room, this.limits.vocabSize) : []
    return { branch, tokens: [tokens[tokens.length - 1]!, ...draft], drafted: draft.length, samples: true }
  }
}

function insert(list: Branch[], branch: Branch): void {
  let at = list.length
  while (at > 0 && servedBefore(branch, list[at - 1]!) < 0) at--
  list.splice(at, 0, branch)
}
