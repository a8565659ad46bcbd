import { contract, fastAttention, largeCache, notFinite, tiles } from './backend'
import { checkAppend, checkCopies, checkDecode, type DecodeCase, timeLaunches } from './decode'
import { checkDevices } from './devices'
import { engine } from './engine'
import type { Case } from './machine'
import { rates } from './rates'

const lengths = [0, 1, 63, 200, 130]
const many = (n: number, most: number) => Array.from({ length: n }, (_, i) => (i * 53) % most)
const alike = (n: number, length: number) => {
  return { lengths: Array<number>(n).fill(length), expectedTokens: n * length, expectedLongest: length }
}
const decodes: readonly DecodeCase[] = [
  { hQ: 16, sQ: 1, pageSize: 64, lengths },
  { hQ: 128, sQ: 1, pageSize: 64, lengths },
  { hQ: 16, sQ: 2, pageSize: 128, lengths },
  { hQ: 9, sQ: 1, pageSize: 16, lengths },
  { hQ: 3, sQ: 4, pageSize: 1, lengths },
  { hQ: 64, sQ: 2, pageSize: 32, lengths },
  { hQ: 128, sQ: 1, pageSize: 64, lengths: many(9, 800) },
  { dtype: 'f16', hQ: 16, sQ: 1, pageSize: 64, lengths },
  { dtype: 'f16', hQ: 33, sQ: 2, pageSize: 1, lengths },
  { outDtype: 'f32', hQ: 40, sQ: 1, pageSize: 64, lengths },
  { dtype: 'f16', outDtype: 'f32', hQ: 128, sQ: 1, pageSize: 32, lengths },
  // As many queries of each sequence as it has: none, one or several, and more than tokens.
  { hQ: 16, sQ: 3, queries: [2, 3, 1, 0, 2], pageSize: 64, lengths },
  { hQ: 36, sQ: 4, queries: [0, 4, 0, 3, 1], pageSize: 16, lengths },
  { dtype: 'f16', outDtype: 'f32', hQ: 72, sQ: 2, queries: [1, 0, 2, 1, 2], pageSize: 128, lengths },
  // Tiles in few parts each, which the decode kernel merges itself.
  { hQ: 16, sQ: 1, pageSize: 64, lengths: many(30, 700) },
  { hQ: 24, sQ: 1, pageSize: 64, lengths: many(20, 700) },
  { hQ: 32, sQ: 1, pageSize: 64, lengths: many(40, 400) },
  { hQ: 128, sQ: 2, pageSize: 16, lengths: many(14, 300) },
  { hQ: 64, sQ: 1, pageSize: 64, ...alike(32, 700) },
  { hQ: 20, sQ: 2, pageSize: 128, ...alike(27, 400) },
  // Small tiles beside each other.
  { hQ: 32, sQ: 1, pageSize: 64, lengths: many(3, 300), expectedTokens: 500 },
  { hQ: 16, sQ: 8, pageSize: 32, lengths: many(4, 300), expectedTokens: 700 },
  { hQ: 40, sQ: 1, pageSize: 64, lengths: many(8, 300), expectedTokens: 1500 },
  { hQ: 48, sQ: 1, pageSize: 64, lengths: many(3, 900) },
  { hQ: 16, sQ: 4, pageSize: 16, lengths: many(7, 700), expectedTokens: 20_000 },
  { hQ: 96, sQ: 1, pageSize: 32, lengths, expectedTokens: 1000 },
  { hQ: 128, sQ: 1, pageSize: 64, lengths: many(8, 600), expectedTokens: 2000 },
]

/** Decodes of at most so many pairs of a query row and a token. */
export const decodesOf = (most: number): readonly Case[] =>
  decodes
    .filter((given) => given.lengths.reduce((sum, n) => sum + n) * given.sQ * given.hQ <= most)
    .map((given) => {
      const { dtype = 'bf16', outDtype = dtype, lengths, hQ, sQ, queries = sQ, pageSize } = given
      const name = `decode of ${lengths.length}, ${dtype} to ${outDtype}, heads ${hQ}, rows ${queries}, page ${pageSize}`
      return [name, (machine) => checkDecode(machine, given)]
    })

/** What needs a device, by name; each throws what is wrong and returns what it measured. */
export const cases: readonly Case[] = [
  ['copies', checkCopies],
  ['append', checkAppend],
  ...decodesOf(Number.POSITIVE_INFINITY),
  ['all devices', checkDevices],
  ['launch cost', timeLaunches],
  ...contract('f32'),
  ...contract('bf16'),
  ...fastAttention,
  largeCache,
  tiles,
  notFinite,
  ...engine,
  ...rates,
]
