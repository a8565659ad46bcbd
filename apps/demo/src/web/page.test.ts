import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startTestServer, type TestServer } from '../server/testing/start'
import { buildWeb } from './build.mjs'

const executablePath = [
  process.env.CHROMIUM,
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path && existsSync(path))
if (!executablePath) console.warn('Page tests skipped: no Chromium found. scripts/install-chromium.sh installs one.')

describe.skipIf(!executablePath)('the page', () => {
  let browser: Browser
  let server: TestServer
  let webRoot: string
  const outside: string[] = []
  const problems: string[] = []

  beforeAll(async () => {
    webRoot = await mkdtemp(join(tmpdir(), 'flashmla-web-'))
    await buildWeb(webRoot)
    server = await startTestServer({ webRoot, stub: { numBlocks: 128, delayMs: 12 } })
    browser = await chromium.launch({ executablePath: executablePath!, args: ['--no-sandbox'] })
  })
  afterAll(async () => {
    await browser?.close()
    await server?.close(0)
    await rm(webRoot, { recursive: true })
  })

  async function open(options: Parameters<Browser['newPage']>[0] = {}, { url: base } = server): Promise<Page> {
    const page = await browser.newPage(options)
    page.on('request', (request) => {
      const url = request.url()
      if (!url.startsWith(base) && !url.startsWith('data:')) outside.push(url)
    })
    page.on('pageerror', (error) => problems.push(error.message))
    page.on('console', (message) => {
      if (message.type() === 'error') problems.push(message.text())
    })
    await page.goto(base)
    await page.waitForSelector('canvas.pool')
    return page
  }
  const pages = (page: Page) =>
    page.$eval('canvas.pool', (canvas) => {
      const { used, shared, cached, free } = (canvas as HTMLCanvasElement).dataset
      return { used: Number(used), shared: Number(shared), cached: Number(cached), free: Number(free) }
    })
  /** Waits for the live view to show what is asked for. */
  const shows = async (page: Page, what: (state: Awaited<ReturnType<typeof pages>>) => boolean) => {
    const seen: unknown[] = []
    for (let i = 0; i < 100; i++) {
      const state = await pages(page)
      if (what(state)) return
      seen.push(state)
      await page.waitForTimeout(30)
    }
    throw new Error(`never shown; seen ${JSON.stringify(seen.slice(-5))}`)
  }

  it('streams a completion while pages fill, are shared by samples, and free', async () => {
    const page = await open({ viewport: { width: 1280, height: 900 } })
    expect(await pages(page)).toMatchObject({ used: 0, shared: 0 })
    await page.getByLabel('Samples').fill('3')
    await page.getByLabel('New tokens').fill('90')
    await page.getByLabel('Your text').fill('The whale and the sea. '.repeat(8))
    await page.getByRole('button', { name: 'Send' }).click()
    await shows(page, ({ used, shared }) => used > 5 && shared > 0)
    const output = page.getByRole('log')
    const early = (await output.textContent())!.length
    await page.waitForTimeout(300)
    expect((await output.textContent())!.length).toBeGreaterThan(early)
    await page.getByRole('button', { name: 'Send' }).and(page.locator(':enabled')).waitFor()
    await shows(page, ({ used, cached }) => used === 0 && cached > 0)
    expect(await output.locator('p').count()).toBe(3)
    await page.close()
  })

  it('runs eight prompts side by side that share the pages of what they have in common', async () => {
    const page = await open()
    await page.getByLabel('New tokens').fill('60')
    await page.getByRole('button', { name: 'Eight at once' }).click()
    await shows(page, ({ used, shared }) => shared > 0 && used > 8)
    expect(server.engine.stats().running).toBe(8)
    await page.getByRole('button', { name: 'Send' }).and(page.locator(':enabled')).waitFor()
    const texts = await page.getByRole('log').locator('p').allTextContents()
    expect(texts).toHaveLength(8)
    expect(new Set(texts).size).toBe(8)
    await page.close()
  })

  it('is worked by keyboard: Enter sends, Escape stops and frees the pages', async () => {
    const page = await open()
    await page.getByLabel('New tokens').fill('900')
    await page.getByRole('tab', { name: 'Chat' }).focus()
    await page.keyboard.press('Enter')
    await page.getByLabel('Your text').focus()
    await page.keyboard.press('Enter')
    await shows(page, ({ used }) => used > 0)
    expect(await page.getByRole('log').textContent()).toContain('What did the captain say')
    await page.keyboard.press('Escape')
    await shows(page, ({ used }) => used === 0)
    expect(server.engine.stats().running).toBe(0)
    await page.close()
  })

  it('shows the error that the server gives', async () => {
    const page = await open()
    await page.getByLabel('Your text').fill('word '.repeat(2000))
    await page.getByRole('button', { name: 'Send' }).click()
    await page.getByText("the model's context of 1024").waitFor()
    problems.length = 0
    await page.close()
  })

  it('goes on with a chat after an answer that failed, as if it had not been asked', async () => {
    const page = await open()
    await page.getByRole('tab', { name: 'Chat' }).click()
    await page.getByLabel('New tokens').fill('5')
    const box = page.getByLabel('Your text')
    const long = 'word '.repeat(2000)
    await box.fill(long)
    await page.getByRole('button', { name: 'Send' }).click()
    await page.getByText("the model's context of 1024").waitFor()
    await page.getByRole('button', { name: 'Send' }).and(page.locator(':enabled')).waitFor()
    expect(await box.inputValue()).toBe(long)
    await box.fill('Shorter.')
    await page.getByRole('button', { name: 'Send' }).click()
    await page.getByText('Shorter.').waitFor()
    await page.getByRole('button', { name: 'Send' }).and(page.locator(':enabled')).waitFor()
    expect(await page.getByRole('log').locator('p b').allTextContents()).toEqual(['user', 'assistant'])
    problems.length = 0
    await page.close()
  })

  it('keeps the mode while an answer is written', async () => {
    const page = await open()
    await page.getByLabel('New tokens').fill('900')
    await page.getByRole('button', { name: 'Send' }).click()
    await shows(page, ({ used }) => used > 0)
    expect(await page.getByRole('tab', { name: 'Chat' }).isDisabled()).toBe(true)
    await page.getByRole('button', { name: 'Stop' }).click()
    await page.getByRole('tab', { name: 'Chat' }).and(page.locator(':enabled')).waitFor()
    await page.close()
  })

  it('does not send on the Enter that ends the composition of a character', async () => {
    const page = await open()
    await page.getByLabel('Your text').evaluate((box) => {
      const init = { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }
      box.dispatchEvent(new KeyboardEvent('keydown', init))
    })
    expect(await page.getByRole('log').locator('p').count()).toBe(0)
    await page.close()
  })

  it('finds a server that begins anew, and tells how large a pool is that it shows in part', async () => {
    const start = (port: number) => startTestServer({ webRoot, port, stub: { numBlocks: 5000 } })
    const first = await start(0)
    const page = await open({}, first)
    await page.getByText('Cache: 5000 pages').waitFor()
    await (await first.post('/v1/completions', { prompt: 'x', max_tokens: 300, ignore_eos: true })).json()
    await page.waitForTimeout(600)
    await first.close(0)
    await page.getByText('No connection').waitFor()
    const rates = await page
      .locator('dl.figures dd')
      .first()
      .evaluateHandle((figure) => {
        const seen: string[] = []
        new MutationObserver(() => seen.push(figure.textContent!)).observe(figure, {
          subtree: true,
          characterData: true,
        })
        return seen
      })
    const second = await start(Number(new URL(first.url).port))
    await page.getByText('No connection').waitFor({ state: 'detached' })
    await (await second.post('/v1/completions', { prompt: 'x', max_tokens: 300, ignore_eos: true })).json()
    await page.waitForTimeout(1200)
    const seen = await rates.jsonValue()
    expect(seen.length).toBeGreaterThan(0)
    expect(seen.filter((rate) => Number(rate) < 0)).toEqual([])
    problems.length = 0
    await page.close()
    await second.close(0)
  })

  it('fits a phone without scrolling sideways, light and dark', async () => {
    const backgrounds: string[] = []
    for (const colorScheme of ['light', 'dark'] as const) {
      const page = await open({ viewport: { width: 390, height: 844 }, colorScheme })
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390)
      backgrounds.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor))
      if (process.env.SCREENSHOTS)
        await page.screenshot({ path: join(process.env.SCREENSHOTS, `phone-${colorScheme}.png`), fullPage: true })
      await page.close()
    }
    expect(new Set(backgrounds).size).toBe(2)
  })

  it('asks nothing of any other host and logs no error', () => {
    expect(outside).toEqual([])
    expect(problems).toEqual([])
  })
})
