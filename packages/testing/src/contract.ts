import { bf16Format, f32Format, fp8V4Format, fp8V32Format } from '@flashmla/latent'
import type { Backend, CacheFormat } from '@flashmla/spec'
import { FlashMlaError, InvalidArgumentError } from '@flashmla/spec'
import type { Case, Dimensions } from './case'
import { attentionCases } from './cases/attention'
import { batchCases } from './cases/batch'
import { cacheCases } from './cases/cache'
import { errorCases } from './cases/errors'
import { expertCases } from './cases/experts'
import { fusedCases } from './cases/fused'
import { memoryCases } from './cases/memory'
import { operationCases } from './cases/operations'
import { sampleCases } from './cases/sample'
import { weightCases } from './cases/weights'
import type { Tolerance } from './compare'
import { ContractError, float32Tolerance } from './compare'
import { Workspace } from './workspace'

/** What a backend declares that it can't do: its cases have to be refused with an UnsupportedError. */
export interface Gap {
  readonly reason: string
  /** Beginnings of case names (`attention: fp8-584`), or patterns. Each must match a case, so that no gap outlives its case. */
  readonly tests: readonly (string | RegExp)[]
}

export interface ContractOptions {
  readonly gaps?: readonly Gap[]
  /** For all cases, or by case name; what is left out is float32's. */
  readonly tolerance?: Partial<Tolerance> | ((name: string) => Partial<Tolerance>)
  /** Cache formats; without it a narrow f32 one and all of the design. */
  readonly formats?: readonly CacheFormat[]
  /** Without it 1, 16, 32, 64 and 128. */
  readonly pageSizes?: readonly number[]
  /** Query heads of the attention cases; 4 without it. */
  readonly heads?: number
}

export interface ContractCase {
  readonly name: string
  /** Why the backend can't do it, where it declares so. */
  readonly gap: string | undefined
  /**
   * Rejects with the mismatch, or with what the backend threw; in a gap unless that is an UnsupportedError. Disposes of all it made but the
   * backend.
   */
  run(): Promise<void>
}

/**
 * Every promise of `Backend` as a list, free of any test framework. Expected values are float64 results of this package's
 * own oracle.
 * @param getBackend called by each case; may return the same backend every time
 * @throws InvalidArgumentError when a gap matches no case
 */
export function contractCases(
  getBackend: () => Backend | Promise<Backend>,
  options: ContractOptions = {},
): readonly ContractCase[] {
  const dimensions: Dimensions = {
    formats: options.formats ?? [
      f32Format(32, 16),
      bf16Format(512, 64),
      bf16Format(448, 64),
      fp8V32Format,
      fp8V4Format,
    ],
    pageSizes: options.pageSizes ?? [1, 16, 32, 64, 128],
    heads: options.heads ?? 4,
  }
  const cases: readonly Case[] = [
    ...memoryCases,
    ...weightCases,
    ...operationCases,
    ...fusedCases,
    ...sampleCases,
    ...expertCases,
    ...cacheCases(dimensions),
    ...attentionCases(dimensions),
    ...batchCases(dimensions),
    ...errorCases(dimensions),
  ]
  const gaps = options.gaps ?? []
  for (const { tests } of gaps) {
    for (const test of tests) {
      if (cases.some(({ name }) => matches(name, test))) continue
      throw new InvalidArgumentError(
        `The gap ${String(test)} matches no case.`,
        'Remove it, or name the case as it is.',
      )
    }
  }
  return cases.map(({ name, run }) => {
    const gap = gaps.find(({ tests }) => tests.some((test) => matches(name, test)))?.reason
    return {
      name,
      gap,
      async run() {
        const given = typeof options.tolerance === 'function' ? options.tolerance(name) : options.tolerance
        const workspace = new Workspace(await getBackend(), { ...float32Tolerance, ...given })
        try {
          await run(workspace)
        } catch (error) {
          if (gap !== undefined && FlashMlaError.isInstance(error) && error.code === 'unsupported') return
          throw error
        } finally {
          workspace.dispose()
        }
        if (gap === undefined) return
        throw new ContractError(`${name}: kept, though it is declared as a gap (${gap}).`, 'Remove the gap.')
      },
    }
  })
}

/** The part of vitest, jest or node:test that the suite needs. */
export interface TestFramework {
  describe(name: string, body: () => void): unknown
  it(name: string, body: () => Promise<void>): unknown
}

/**
 * Registers the contract as tests.
 * @example
 * runBackendContract('reference', () => new ReferenceBackend(), { describe, it })
 */
export function runBackendContract(
  name: string,
  getBackend: () => Backend | Promise<Backend>,
  options: ContractOptions & TestFramework,
): void {
  const { describe, it } = options
  describe(`${name} keeps the backend contract`, () => {
    for (const test of contractCases(getBackend, options)) {
      it(test.gap === undefined ? test.name : `${test.name} (gap: ${test.gap})`, () => test.run())
    }
  })
}

function matches(name: string, test: string | RegExp): boolean {
  return typeof test === 'string' ? name.startsWith(test) : name.search(test) >= 0
}
