import type { ExpertWeights } from '@flashmla/spec'
import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { upload } from '../driver/copy'
import type { DeviceMemory } from '../driver/memory'
import { EXPERT_BYTES, MlaElementsParams, MlaExpertParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { HALF_TILE, TILE } from './linear'
import type { CudaTensor } from './tensor'
import { columnsOf, rowsOf } from './tensor'
import { type CudaWeight, ownWeight } from './weight'

/** Most pairs of token and choice, per expert, for which every pair reads its expert's weights on its own: by Hopper's tiles, and by the others. */
const FEW_PAIRS = { mapped: 0.5, others: 4 } as const
/** Outputs of a block of mla_expert_up and of mla_expert_down. */
const [UP_OUTPUTS, DOWN_OUTPUTS] = [16, 8]
/** One thread of mla_expert_sort each. */
const MOST_SORTED = 1024

interface Table {
  readonly matrices: readonly CudaWeight[]
  readonly memory: DeviceMemory
  /** Whether all matrices are bf16, and whether all have tensor maps. */
  readonly halves: boolean
  readonly mapped: boolean
}

/** Tables of a layer's matrices in device memory, made on first use, freed with the layer's first weight. */
export class ExpertTables {
  /** By the first matrix. What an array holds may change, so the matrices tell whether a table is theirs. */
  readonly #tables = new Map<CudaWeight, Table[]>()

  constructor(private readonly device: BackendDevice) {}

  /** @throws DisposedError when a matrix is gone, InvalidArgumentError when the experts differ in shape */
  of(experts: readonly ExpertWeights[]): Table {
    const tables = this.#tables.get(experts[0]!.gate as CudaWeight) ?? []
    const known = tables.find((table) => isOf(table, experts))
    if (known) {
      for (const matrix of known.matrices) void matrix.address
      return known
    }
    const matrices = experts.flatMap(({ gate, up, down }) => [gate, up, down].map((w) => ownWeight(this.device, w)))
    for (const matrix of matrices) void matrix.address
    const first = matrices[0]!
    const shape = String(experts[0]!.gate.shape)
    const other = experts.findIndex(({ gate }) => String(gate.shape) !== shape)
    if (other >= 0)
      throw new InvalidArgumentError(
        `Expert ${other} has a gate [${experts[other]!.gate.shape}], expert 0 [${shape}].`,
        'Give experts of one shape.',
      )
    this.device.alive()
    const bytes = new DataView(new ArrayBuffer(experts.length * EXPERT_BYTES))
    for (const [i, matrix] of matrices.entries()) {
      const base = Math.floor(i / 3) * EXPERT_BYTES
      bytes.setBigUint64(base + (i % 3) * 8, matrix.address, true)
      bytes.setInt32(base + 24 + (i % 3) * 4, matrix.code, true)
      bytes.setBigUint64(base + 40 + (i % 3) * 8, matrix.map ?? 0n, true)
    }
    const memory = this.device.allocate(bytes.byteLength)
    upload(this.device.stream, memory, bytes)
    const halves = matrices.every(({ dtype }) => dtype === 'bf16')
    const table = { matrices, memory, halves, mapped: matrices.every(({ map }) => map !== undefined) }
    this.#tables.set(first, [...tables, table])
    first.onDispose(() => {
      this.#tables.delete(first)
      this.device.free(memory)
    })
    return table
  }
}

/** A kernel for many pairs, and outputs of its tiles. */
type Tiles = readonly [symbol: string, outputs: number]

/** On Hopper, for so many outputs; gated: those of gate and up at once. */
const hopperTiles = (outputs: number): Tiles =>
  outputs > 128 ? ['mla_expert_tiles_64x256', 256] : ['mla_expert_tiles_64x128', 128]
const gatedTiles = (outputs: number): Tiles =>
  outputs > 64 ? ['mla_expert_gated_64x256', 128] : ['mla_expert_gated_64x128', 64]
const otherTiles = ({ halves }: Table): Tiles =>
  halves ? ['mla_expert_tiles_half', HALF_TILE] : ['mla_expert_tiles', TILE]

function isOf({ matrices }: Table, experts: readonly ExpertWeights[]): boolean {
  if (matrices.length !== 3 * experts.length) return false
  for (let e = 0; e < experts.length; e++) {
    const { gate, up, down } = experts[e]!
    if (matrices[3 * e] !== gate || matrices[3 * e + 1] !== up || matrices[3 * e + 2] !== down) return false
  }
  return true
}

/** Queues out[r] += Σ_c weights[r, c] · expert(ids[r, c])(x[r]), choices in their order. */
export function runExperts(
  device: BackendDevice,
  tables: ExpertTables,
  operands: {
    readonly out: CudaTensor<'f32'>
    readonly x: CudaTensor<'f32'>
    readonly ids: CudaTensor<'i32'>
    readonly weights: CudaTensor<'f32'>
    readonly experts: readonly ExpertWeights[]
  },
): void {
  const { out, x, ids, weights, experts } = operands
  const [n, hidden, choices, count] = [rowsOf(x), columnsOf(x), columnsOf(ids), experts.length]
  const pairs = n * choices
  const [from, to, chosen, shares] = [x.address, out.address, ids.address, weights.address]
  if (pairs === 0) return
  if (count === 0) throw new InvalidArgumentError('There are no experts to choose.', 'Give at least one expert.')
  const table = tables.of(experts)
  const inner = experts[0]!.gate.shape[0]!
  const aligned = hidden % 8 === 0 && inner % 8 === 0 && x.address % 16n === 0n
  const mapped = table.mapped && aligned
  const many = pairs > FEW_PAIRS[mapped ? 'mapped' : 'others'] * count
  if (many && count > MOST_SORTED)
    throw new UnsupportedError(`${count} experts have no CUDA kernel.`, `Up to ${MOST_SORTED} are taken.`)
  const tiles = Math.min(pairs, Math.floor(pairs / TILE) + count)
  const work = (name: string, elements: number) => device.workspace(`experts ${name}`, elements * 4).address
  const values = {
    x: from,
    out: to,
    ids: chosen,
    weights: shares,
    experts: table.memory.address,
    gate: work('gate', pairs * inner),
    up: many && !mapped ? work('up', pairs * inner) : null,
    down: many ? work('down', pairs * hidden) : null,
    order: many ? work('order', pairs) : null,
    place: many ? work('place', pairs) : null,
    tiles: many ? work('tiles', 4 * tiles) : null,
    n,
    hidden,
    inner,
    choices,
    count,
    stage: 0,
    vector: aligned ? 1 : 0,
    most_tiles: tiles,
    reserved: 0,
  }
  const run = (symbol: string, grid: readonly [number, number], stage = 0) => {
    values.stage = stage
    device.run(symbol, MlaExpertParams, grid, values)
  }
  if (!many) {
    run('mla_expert_up', [Math.ceil(inner / UP_OUTPUTS), pairs])
    run('mla_expert_down', [Math.ceil(hidden / DOWN_OUTPUTS), n])
    return
  }
  const product = ([symbol, tile]: Tiles, outputs: number, stage: number) =>
    run(symbol, [tiles, Math.ceil(outputs / tile)], stage)
  run('mla_expert_sort', [1, 1])
  if (mapped) {
    product(gatedTiles(inner), inner, 0)
    product(hopperTiles(hidden), hidden, 2)
  } else {
    const kind = otherTiles(table)
    product(kind, inner, 0)
    product(kind, inner, 1)
    const { gate, up } = values
    const elements = pairs * inner
    device.run('mla_silu_mul', MlaElementsParams, [Math.ceil(elements / 1024), 1], {
      out: gate,
      a: gate,
      b: up,
      n: elements,
    })
    product(kind, hidden, 2)
  }
  run('mla_expert_sum', [n, Math.ceil(hidden / 256)])
}
