import type { CachedSequence } from '@flashmla/kv-cache'
import type { Branch, Job } from './branch'
import type { Drawn } from './drawn'
import type { FinishReason } from './request'
import type { Sample } from './sampler'
import type { Scheduled, Scheduler } from './scheduler'

/** What delivery counts of the engine's statistics. */
export interface DeliveryCounters {
  generated: number
  drafted: number
  accepted: number
  cached: number
  finished: number
}

export interface DeliveryLimits {
  readonly eosTokenIds: readonly number[]
  /** Tokens that a sequence can have, its prompt included. */
  readonly contextTokens: number
}

/** Hands out a step's tokens: tells the listeners, and ends what has its last one. */
export class Delivery {
  /** `end` is called with a job whose samples have all ended. */
  constructor(
    private readonly limits: DeliveryLimits,
    private readonly scheduler: Scheduler,
    private readonly counters: DeliveryCounters,
    private readonly end: (job: Job) => void,
  ) {}

  /** Delivers what is drawn of the step, and rolls back what was guessed wrong. Returns the tokens delivered. */
  take({ branch, tokens, drafted, samples }: Scheduled, drawn: Drawn): number {
    const { job } = branch
    if (!job.live.has(branch)) return 0
    job.failures = 0
    if (!samples) {
      branch.sequence!.commit()
      return 0
    }
    const first = branch.generated === 0
    const known = branch.tokens.length
    let delivered = 0
    let accepted = 0
    let finished = false
    if (first) {
      this.counters.cached += job.cachedTokens
      this.#forkSamples(branch)
    }
    for (let row = 0; row <= drafted && !finished; row++) {
      const before = branch.tokens.length
      finished = this.#deliver(branch, drawn(branch, row))
      delivered += branch.tokens.length - before
      if (row === drafted || branch.tokens[known + row] !== tokens[tokens.length - drafted + row]) break
      accepted++
    }
    this.counters.drafted += drafted
    this.counters.accepted += accepted
    if (job.live.has(branch)) keepComputed(branch.sequence!, branch.tokens.length)
    if (first)
      for (const other of [...job.live]) {
        if (!job.live.has(other) || other.index <= branch.index || other.generated > 0) continue
        this.#deliver(other, drawn(other, 0))
        delivered += other.generated
      }
    this.counters.generated += delivered
    return delivered
  }

  #forkSamples(branch: Branch): void {
    for (const other of branch.job.live) {
      if (other === branch || other.sequence || other.generated > 0) continue
      other.sequence = branch.sequence!.fork()
      this.scheduler.adopt(other)
    }
  }

  /** Delivers and accounts for one token; true when the sample has ended. */
  #deliver(branch: Branch, sample: Sample): boolean {
    const { job, index, constraint } = branch
    const { request } = job
    const { token } = sample
    const eos = !request.ignoreEos && this.limits.eosTokenIds.includes(token)
    if (eos || request.stopTokenIds?.includes(token)) return this.finish(branch, 'stop')
    constraint?.accept(token)
    branch.tokens.push(token)
    job.listener.event({ type: 'token', index, ...sample })
    // The listener may have cancelled its request.
    if (!job.live.has(branch)) return true
    if (request.shouldStop?.(index, token) || constraint?.ended) return this.finish(branch, 'stop')
    const full = branch.tokens.length >= this.limits.contextTokens
    if (branch.generated >= job.maxTokens || full) return this.finish(branch, 'length')
    return false
  }

  /** Ends one sample; its job with the last of them. */
  finish(branch: Branch, reason: FinishReason): true {
    const { job } = branch
    if (branch.sequence) keepComputed(branch.sequence, branch.tokens.length)
    job.listener.event({
      type: 'finish',
      index: branch.index,
      reason,
      tokens: branch.generated,
      cachedTokens: job.cachedTokens,
    })
    // The listener may have cancelled its request.
    if (!job.live.has(branch)) return true
    this.scheduler.remove(branch)
    job.live.delete(branch)
    if (job.live.size === 0) {
      this.counters.finished++
      this.end(job)
    }
    return true
  }
}

/** The last of a branch's tokens was sampled, not computed, and after its predecessor there may be wrong guesses: the cache ends there. */
function keepComputed(sequence: CachedSequence, tokens: number): void {
  sequence.truncate(Math.min(sequence.length, tokens - 1))
  sequence.commit()
}
