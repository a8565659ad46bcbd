import type { CacheFormat } from '@flashmla/spec'
import type { Workspace } from './workspace'

/** One promise of the contract. `run` throws when the backend breaks it. */
export interface Case {
  /** `group: promise`, stable, to be named in a gap. */
  readonly name: string
  run(workspace: Workspace): Promise<void> | void
}

/** What the cache and attention cases range over. */
export interface Dimensions {
  readonly formats: readonly CacheFormat[]
  readonly pageSizes: readonly number[]
  readonly heads: number
}
