import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Checkpoint, loadTokenizer } from '@flashmla/engine'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const entry = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const tiny = fileURLToPath(new URL('../../../packages/tiny-mla/model/', import.meta.url))
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cli-'))
})
afterAll(() => rm(folder, { recursive: true }))

interface Result {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** The built command line in a process of its own. */
function flashmla(...args: string[]): Promise<Result> {
  return new Promise((resolve) => {
    execFile(process.execPath, [entry, ...args], { timeout: 30_000 }, (error, out, err) => {
      resolve({ code: error ? Number(error.code ?? -1) : 0, out, err })
    })
  })
}

describe('flashmla', () => {
  it('lists its commands, and each explains itself', async () => {
    const { code, out } = await flashmla('--help')
    expect(code).toBe(0)
    for (const command of ['generate', 'serve', 'inspect', 'logits', 'doctor']) {
      expect(out).toContain(`  ${command} `)
      expect((await flashmla(command, '--help')).out).toContain(`flashmla ${command}`)
    }
  })

  it('generates the golden greedy text', async () => {
    const [golden] = JSON.parse(await readFile(join(tiny, 'golden.json'), 'utf8'))
    const tokenizer = await loadTokenizer(tiny)
    const decode = (ids: number[]) => tokenizer.decode(ids, { skip_special_tokens: true })
    const prompt = decode(golden.prompt_ids)
    expect(tokenizer.encode(prompt).ids).toEqual(golden.prompt_ids)
    const args = ['--prompt', prompt, '--temperature', '0', '--max-tokens', '16', '--json']
    const first = JSON.parse((await flashmla('generate', ...args)).out)
    const again = JSON.parse((await flashmla(...args)).out)
    expect(prompt + first.text).toBe(decode([...golden.prompt_ids, ...golden.greedy_ids.slice(0, 16)]))
    expect(again.text).toBe(first.text)
    expect(first).toMatchObject({ tokens: 16, finishReason: 'length', cacheFormat: 'f32-576' })
    expect(first.bytesPerTokenPlainAttention).toBeGreaterThan(first.bytesPerToken)
  })

  it('streams to a pipe without colours or bars', async () => {
    const { out, err } = await flashmla('--prompt', 'The whale', '--max-tokens', '4', '--temperature', '0')
    expect(out.startsWith('The whale')).toBe(true)
    expect(out).toMatch(/decode \d+ tokens\/s/)
    expect(out + err).not.toContain('\u001b')
    expect(err).toBe('')
  })

  it('asks what --chat says, even if that is nothing', async () => {
    const { out } = await flashmla('--chat', '', '--max-tokens', '4', '--temperature', '0')
    expect(out).not.toContain('It was a dark night')
  })

  it('writes logits that a checkpoint reader reads, equal to the golden ones', async () => {
    const [golden] = JSON.parse(await readFile(join(tiny, 'golden.json'), 'utf8'))
    const output = join(folder, 'model.safetensors')
    const ids = golden.prompt_ids as number[]
    const { code } = await flashmla('logits', '--token-ids', JSON.stringify([ids, ids]), '--output', output)
    expect(code).toBe(0)
    const vocab = golden.last_logits.length as number
    const checkpoint = await Checkpoint.open(folder)
    const logits = await checkpoint.read('logits', [2, ids.length, vocab])
    await checkpoint.close()
    for (const last of [ids.length, 2 * ids.length]) {
      const row = logits.subarray((last - 1) * vocab, last * vocab)
      const worst = row.reduce((most, value, i) => Math.max(most, Math.abs(value - golden.last_logits[i])), 0)
      expect(worst).toBeLessThan(1e-3)
    }
  })

  it('inspects a model from its configuration', async () => {
    const { out } = await flashmla('inspect', '--memory', '1GiB')
    expect(out).toContain('kv_lora_rank 512')
    expect(out).toContain('fp8-656')
    const json = JSON.parse((await flashmla('inspect', '--json')).out)
    expect(json.config.kvLoraRank).toBe(512)
    expect(json.weights.tensors).toBeGreaterThan(0)
  })

  it('tells what this machine can run', async () => {
    const { backends, cuda } = JSON.parse((await flashmla('doctor', '--json')).out)
    if (!cuda.available) expect(cuda.reason).toMatch(/NVIDIA/)
    else expect(cuda.devices[0]).toMatchObject({ ordinal: 0, kernels: expect.any(Array) })
    for (const id of ['cpu', 'reference'])
      expect(backends.find((check: { id: string }) => check.id === id)).toMatchObject({ usable: true })
    const [first] = backends
    expect(first).toMatchObject({ id: 'cuda', usable: cuda.available && cuda.devices[0].kernels.length > 0 })
    expect(backends.filter(({ chosen }: { chosen: boolean }) => chosen)).toHaveLength(1)
  })

  it.each([
    [['generate', '--model', '/nowhere'], 1, /config\.json: the file is missing/],
    [['generate', '--temperature', 'hot'], 1, /--temperature can't be hot/],
    [['generate', '--backend', 'abacus'], 1, /Choose auto/],
    [['generate', '--fast', '--backend', 'cpu'], 1, /--fast is of the cuda backend, not of cpu/],
    [
      ['logits', '--device', '0', '--backend', 'reference', '--token-ids', '[[1]]', '--output', 'x'],
      1,
      /--device is of the cuda/,
    ],
    [['generate', '--fast', '--cache', 'fp8-656'], 1, /--fast can't have a fp8-656 cache/],
    [['serve', '--device', 'one'], 1, /--device can't be one/],
    [['serve', '--cache', 'f64'], 1, /--cache can't be f64/],
    [['serve', '--max-batch-tokens', '0'], 1, /--max-batch-tokens can't be 0/],
    [['serve', '--page-size', 'x'], 1, /--page-size can't be x/],
    [['generate', '--tempo', '1'], 2, /--tempo/],
    [['logits', '--token-ids', '[[1],[2,3]]', '--output', 'x'], 1, /differ in length/],
    [['logits', '--token-ids', '[[1]]', '--output', '/nowhere/x'], 1, /can't be written/],
    [['inspect', '--memory', 'much'], 1, /--memory can't be much/],
    [['generate', '--stop', ''], 1, /--stop can't be empty/],
    [['serve', '--port', ''], 1, /--port can't be/],
    [['serve', '--max-queued', '0'], 1, /--max-queued can't be 0/],
    [['serve', '--grace', '3000000'], 1, /--grace can't be 3000000/],
    [['serve', '--port', '0', '--host', ''], 1, /--host can't be empty/],
    [['serve', '--api-key', ''], 1, /--api-key can't be empty/],
    [['dance'], 2, /no command dance/],
    [['constructor', '--help'], 2, /no command constructor/],
  ])('%j ends with a line that tells what to do', async (args, code, message) => {
    const result = await flashmla(...args)
    expect(result.code).toBe(code)
    expect(result.err).toMatch(message)
    expect(result.err).not.toMatch(/\n\s+at /)
  })
})
