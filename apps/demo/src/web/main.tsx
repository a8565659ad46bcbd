import { render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import 'uplot/dist/uPlot.min.css'
import type { Settings } from './api'
import { Charts } from './charts'
import { Memory } from './memory'
import { Pool } from './pool'
import './style.css'
import { useLive } from './use-live'
import { Writer } from './writer'

const initial: Settings = { temperature: 0.8, topP: 0.95, maxTokens: 120, seed: '', n: 1, apiKey: '' }

function App() {
  const [settings, setSettings] = useState(initial)
  const [theme, setTheme] = useState<'light' | 'dark' | undefined>()
  const { live, points, offline } = useLive(settings.apiKey)
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme
  }, [theme])
  const dark = theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches
  return (
    <>
      <header>
        <h1>FlashMLA for TypeScript</h1>
        <p role="status">
          {offline ? (
            <span class="offline">No connection to the server (or it wants an API key).</span>
          ) : live ? (
            `${live.model.id} on the ${live.model.backend} backend, context ${live.model.maxPositions}`
          ) : (
            'connecting …'
          )}
        </p>
        <button type="button" onClick={() => setTheme(dark ? 'light' : 'dark')}>
          {dark ? 'Light' : 'Dark'}
        </button>
      </header>
      <main>
        <Writer settings={settings} change={setSettings} />
        {live && (
          <div class="stack">
            <section aria-label="Now">
              <dl class="figures">
                <Figure name="Tokens a second" value={(points.at(-1)?.tokensPerSecond ?? 0).toFixed(0)} />
                <Figure name="Running" value={live.stats.running} />
                <Figure name="Queued" value={live.stats.queued} />
                <Figure name="Prefix hits" value={`${(points.at(-1)?.hitRate ?? 0).toFixed(0)} %`} />
                <Figure name="Preemptions" value={live.stats.preemptions} />
              </dl>
              <Pool live={live} />
            </section>
            <Memory live={live} />
            <Charts points={points} />
          </div>
        )}
      </main>
    </>
  )
}

function Figure({ name, value }: { name: string; value: string | number }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  )
}

render(<App />, document.getElementById('app')!)
