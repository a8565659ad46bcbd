import type { EngineStats, LlmEngine } from '@flashmla/engine'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'

const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

/** The server's Prometheus metrics. Counts of the engine are read when they are asked for. */
export class Metrics {
  readonly registry = new Registry()
  readonly requests = new Counter({
    name: 'flashmla_http_requests_total',
    help: 'HTTP requests answered.',
    labelNames: ['method', 'route', 'status'],
    registers: [this.registry],
  })
  readonly firstToken = this.#histogram('flashmla_time_to_first_token_seconds', 'From the request to its first token.')
  readonly interToken = this.#histogram('flashmla_inter_token_seconds', 'Between two tokens of a sample.')
  readonly duration = this.#histogram('flashmla_request_seconds', 'From the request to its last token.')

  constructor(engine: LlmEngine) {
    const gauge = (name: string, help: string, read: (stats: EngineStats) => number) =>
      new Gauge({
        name: `flashmla_${name}`,
        help,
        registers: [this.registry],
        collect() {
          this.set(read(engine.stats()))
        },
      })
    const counter = (name: string, help: string, read: (stats: EngineStats) => number) =>
      new Counter({
        name: `flashmla_${name}_total`,
        help,
        registers: [this.registry],
        collect() {
          this.reset()
          this.inc(read(engine.stats()))
        },
      })
    gauge('queued_requests', 'Sequences that wait for pages or a slot.', (s) => s.queued)
    gauge('running_requests', 'Sequences that hold pages.', (s) => s.running)
    gauge('pages_used', 'Pages held by running sequences.', (s) => s.pages.used)
    gauge('pages_cached', 'Pages held by the prefix cache alone.', (s) => s.pages.cached)
    gauge('pages_free', 'Pages that hold nothing.', (s) => s.pages.free)
    counter('steps', 'Steps run.', (s) => s.steps)
    counter('prompt_tokens', 'Prompt tokens submitted.', (s) => s.prompt)
    counter('prefill_tokens', 'Prompt tokens computed.', (s) => s.prefill)
    counter('generated_tokens', 'Tokens generated.', (s) => s.generated)
    counter('prefix_hit_tokens', 'Prompt tokens found in the prefix cache.', (s) => s.cached)
    counter('preemptions', 'Sequences that gave their pages back to be recomputed.', (s) => s.preemptions)
    counter('draft_tokens', 'Tokens guessed by the drafter.', (s) => s.drafted)
    counter('accepted_draft_tokens', 'Guessed tokens that were right.', (s) => s.accepted)
  }

  #histogram(name: string, help: string): Histogram {
    return new Histogram({ name, help, buckets: seconds, registers: [this.registry] })
  }
}
