import { PagedKvCache } from '@flashmla/kv-cache'
import { AbortedError, DeadlineError, DisposedError, QueueFullError } from '@flashmla/spec'
import type { Job } from './branch'
import { Branch } from './branch'
import { Delivery } from './delivery'
import { PromptLookupDrafter } from './drafter'
import { type Drawn, runStep } from './drawn'
import type { EngineOptions, StepModel } from './options'
import type { GenerationRequest, RequestHandle, RequestListener, RunningRequest } from './request'
import { checkRequest, EventQueue } from './request'
import { checkSampling } from './sampler'
import type { Scheduled } from './scheduler'
import { Scheduler } from './scheduler'
import type { EngineStats, PageMap, StepReport } from './stats'
import { pageMap } from './stats'

/** Continuous batching over one model: `step() = schedule → run → deliver`. */
export class LlmEngine {
  readonly #scheduler: Scheduler
  readonly #cache: PagedKvCache
  readonly #jobs = new Map<number, Job>()
  readonly #listeners = new Set<(report: StepReport) => void>()
  readonly #counters = {
    steps: 0,
    prefill: 0,
    generated: 0,
    drafted: 0,
    accepted: 0,
    prompt: 0,
    cached: 0,
    finished: 0,
  }
  #nextId = 0
  #loop: Promise<void> | undefined
  /** The step that runs. */
  #step: Promise<StepReport> | undefined
  #disposed = false
  /** True while the model works; branches that end meanwhile are doomed: their pages go when it has run. */
  #busy = false
  readonly #doomed: Branch[] = []
  readonly #maxQueued: number
  readonly #maxAttempts: number
  readonly #maxSamples: number
  /** Tokens that a sequence can have, its prompt included: the model's positions, or what its pool holds if that is less. */
  readonly contextTokens: number
  readonly #delivery: Delivery

  constructor(
    readonly model: StepModel,
    options: EngineOptions = {},
  ) {
    const { pool, pageSize } = model
    const maxBatchSize = Math.min(options.maxBatchSize ?? model.maxBatchSize, model.maxBatchSize)
    const maxBatchTokens = Math.min(options.maxBatchTokens ?? 512, model.maxBatchTokens)
    this.#maxQueued = options.maxQueued ?? 256
    this.#maxAttempts = options.maxAttempts ?? 2
    this.#maxSamples = Math.min(maxBatchSize, maxBatchTokens)
    const prefixCache = options.prefixCache ?? true
    this.#cache = new PagedKvCache({ pool, pageSize, prefixCache })
    const limits = {
      maxBatchSize: this.#maxSamples,
      maxBatchTokens,
      prefillChunk: options.prefillChunk ?? 128,
      vocabSize: model.config.vocabSize,
      sharesPrefixes: prefixCache,
      watermarkPages: Math.ceil(pool.numBlocks * (options.watermark ?? 0.02)),
    }
    this.#scheduler = new Scheduler(this.#cache, limits, options.drafter ?? new PromptLookupDrafter())
    this.contextTokens = Math.min(model.config.maxPositions, pool.numBlocks * pageSize)
    const { eosTokenIds } = model.config
    const bounds = { eosTokenIds, contextTokens: this.contextTokens }
    this.#delivery = new Delivery(bounds, this.#scheduler, this.#counters, (job) => this.#end(job))
  }

  /**
   * Queues a request and returns its events. Generation goes on whether or not they are read.
   * @throws InvalidArgumentError when the request can never be served, QueueFullError when too many wait, AbortedError
   * when its signal has fired already
   */
  submit(request: GenerationRequest): RequestHandle {
    const queue = new EventQueue(() => running.cancel())
    const running = this.start(request, queue)
    return { ...running, [Symbol.asyncIterator]: () => queue[Symbol.asyncIterator]() }
  }

  /**
   * Queues a request whose events `listener` hears within the step that made them: `submit` without its queue, for
   * servers of many requests. It hears nothing before this has returned.
   * @throws InvalidArgumentError when the request can never be served, QueueFullError when too many wait, AbortedError
   * when its signal has fired already
   */
  start(request: GenerationRequest, listener: RequestListener): RunningRequest {
    if (this.#disposed) throw new DisposedError('An engine')
    const { vocabSize } = this.model.config
    checkRequest(request, { vocabSize, contextTokens: this.contextTokens, maxSamples: this.#maxSamples })
    checkSampling(request.sampling ?? {}, vocabSize)
    if (request.signal?.aborted) throw new AbortedError('The request')
    const queued = this.queued
    if (queued >= this.#maxQueued) throw new QueueFullError(queued)
    const id = this.#nextId++
    const room = this.contextTokens - request.prompt.length
    const cancel = () => this.#end(job, new AbortedError(`Request ${id}`))
    const job: Job = {
      id,
      request,
      listener,
      cancel,
      sampling: request.sampling ?? {},
      seed: request.sampling?.seed ?? Math.floor(Math.random() * 0x100000000),
      maxTokens: Math.min(request.maxTokens ?? room, room),
      salt: request.cacheSalt ?? '',
      priority: request.priority ?? 0,
      deadline: request.deadlineMs === undefined ? Number.POSITIVE_INFINITY : performance.now() + request.deadlineMs,
      samples: request.n ?? 1,
      live: new Set(),
      failures: 0,
      cachedTokens: 0,
    }
    for (let index = 0; index < job.samples; index++) job.live.add(new Branch(job, index, request.prompt))
    this.#jobs.set(id, job)
    this.#counters.prompt += request.prompt.length
    if (job.maxTokens === 0) {
      queueMicrotask(() => {
        try {
          for (const branch of [...job.live]) if (job.live.has(branch)) this.#delivery.finish(branch, 'length')
        } catch (error) {
          this.#end(job, error as Error)
        }
      })
      return { id, cancel }
    }
    // The first sample computes the prompt; the others fork from it.
    this.#scheduler.enqueue([...job.live][0]!)
    request.signal?.addEventListener('abort', cancel, { once: true })
    this.#loop ??= this.#run()
    return { id, cancel }
  }

  /** Requests that hold no pages yet. */
  get queued(): number {
    return this.#scheduler.waiting.length
  }

  /** One step. The engine takes steps by itself while there are requests; a call while one runs gives that one's report. */
  step(): Promise<StepReport> {
    // A turn later, so that a listener that asks for a step within one finds it here.
    this.#step ??= Promise.resolve()
      .then(() => this.#once())
      .finally(() => {
        this.#step = undefined
      })
    return this.#step
  }

  async #once(): Promise<StepReport> {
    const started = performance.now()
    for (const job of this.#jobs.values())
      if (started > job.deadline) this.#end(job, new DeadlineError(mostGenerated(job)))
    const scheduled = this.#scheduler.schedule()
    const prefill = scheduled.reduce((sum, { branch, tokens, drafted }) => {
      return sum + (tokens.length - drafted > 1 || branch.generated === 0 ? tokens.length : 0)
    }, 0)
    let generated = 0
    if (scheduled.length > 0) {
      const results = await this.#forward(scheduled)
      if (results)
        scheduled.forEach((entry, i) => {
          try {
            generated += this.#delivery.take(entry, results[i]!)
          } catch (error) {
            // A constraint or a callback of one request failed: the others go on.
            this.#end(entry.branch.job, error as Error)
          }
        })
    }
    this.#counters.steps++
    this.#counters.prefill += prefill
    const report = { sequences: scheduled.length, prefill, generated, milliseconds: performance.now() - started }
    for (const listener of this.#listeners) listener(report)
    return report
  }

  /** Calls `listener` after each step; the returned function ends that. */
  onStep(listener: (report: StepReport) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  stats(): EngineStats {
    const { blocks, used, cached, free } = this.#cache.stats()
    return {
      ...this.#counters,
      queued: this.queued,
      running: this.#scheduler.running.length,
      preemptions: this.#scheduler.preemptions,
      pages: { total: blocks, used, cached, free: free - cached },
    }
  }

  /** Who holds which page now. */
  pages(): PageMap {
    return pageMap(this.#cache, this.#scheduler.running)
  }

  /** Resolves when every submitted request has ended. */
  async idle(): Promise<void> {
    while (this.#loop) await this.#loop
  }

  /** What contradicts itself in the cache's state, in words: empty when all is well. Walks every page. */
  violations(): string[] {
    return this.#cache.violations()
  }

  /** Forgets every remembered prefix. */
  clearCache(): void {
    this.#cache.clear()
  }

  /** Cancels what runs and waits, and frees the remembered pages. The model stays the caller's. */
  async dispose(): Promise<void> {
    this.#disposed = true
    for (const job of [...this.#jobs.values()]) this.#end(job, new AbortedError(`Request ${job.id}`))
    await this.idle()
    await this.#step?.catch(() => {})
    this.#cache.detach()
  }

  async #run(): Promise<void> {
    // Begins a turn later, so that requests submitted together start together.
    do {
      await new Promise((resolve) => setImmediate(resolve))
      try {
        if (this.#jobs.size > 0) await this.step()
      } catch (error) {
        for (const job of [...this.#jobs.values()]) this.#end(job, error as Error)
      }
    } while (this.#jobs.size > 0)
    this.#loop = undefined
  }

  /** What the step draws; undefined when the model failed, in which case the branches wait to be computed anew. */
  async #forward(scheduled: readonly Scheduled[]): Promise<Drawn[] | undefined> {
    this.#busy = true
    try {
      return await runStep(this.model, scheduled)
    } catch (error) {
      const jobs = new Set(scheduled.map(({ branch }) => branch.job))
      for (const { branch } of scheduled) if (branch.job.live.has(branch)) this.#scheduler.preempt(branch)
      for (const job of jobs) if (++job.failures >= this.#maxAttempts) this.#end(job, error as Error)
      return undefined
    } finally {
      this.#busy = false
      for (const branch of this.#doomed.splice(0)) this.#scheduler.remove(branch)
    }
  }

  #end(job: Job, error?: Error): void {
    if (!this.#jobs.delete(job.id)) return
    for (const branch of job.live) {
      if (this.#busy) this.#doomed.push(branch)
      else this.#scheduler.remove(branch)
    }
    job.live.clear()
    job.request.signal?.removeEventListener('abort', job.cancel)
    job.listener.end(error)
  }
}

function mostGenerated(job: Job): number {
  return Math.max(0, ...[...job.live].map((branch) => branch.generated))
}
