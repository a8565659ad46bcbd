import { useEffect, useRef, useState } from 'preact/hooks'
import type { Settings, Turn } from './api'
import { ask } from './api'

type Mode = 'completion' | 'chat'
type Shown = { readonly label: string; readonly text: string; readonly error?: boolean }

const examples: Record<Mode, string> = {
  completion:
    'It was a dark night upon the sea, and the wind was against them; and the men of the ship were sore afraid, for they ' +
    'had not seen the land for many days, neither had they bread to eat. And the captain said unto his men that they should',
  chat: 'What did the captain say unto his men?',
}

/** Prompt in, text out: completion and chat, with the sampling controls and a stop button. */
export function Writer({ settings, change }: { settings: Settings; change: (settings: Settings) => void }) {
  const [mode, setMode] = useState<Mode>('completion')
  const [text, setText] = useState(examples.completion)
  const [shown, setShown] = useState<readonly Shown[]>([])
  const [history, setHistory] = useState<readonly Turn[]>([])
  const [running, setRunning] = useState(0)
  const controller = useRef(new AbortController())
  const end = useRef<HTMLDivElement>(null)
  useEffect(() => {
    if (end.current) end.current.scrollTop = end.current.scrollHeight
  }, [shown])

  const stop = () => {
    controller.current.abort()
    controller.current = new AbortController()
  }
  /**
   * Shows the answers after `base`, each behind what it continues: one of `prefixes` for each prompt, `n` samples of each.
   * Gives the first one, or what there is of it when stopped; nothing when it failed.
   */
  const stream = async (
    input: Parameters<typeof ask>[0],
    base: readonly Shown[],
    prefixes: readonly string[],
    label: string,
    n = settings.n,
  ) => {
    const { signal } = controller.current
    const pieces: string[] = Array(prefixes.length * n).fill('')
    const show = (more: readonly Shown[] = []) =>
      setShown([
        ...base,
        ...pieces.map((piece, i) => ({
          label: pieces.length > 1 ? `${label} ${i + 1}` : label,
          text: prefixes[Math.floor(i / n)]! + piece,
        })),
        ...more,
      ])
    setRunning((count) => count + 1)
    show()
    try {
      for await (const { index, text } of ask(input, { ...settings, n }, signal)) {
        pieces[index] += text
        show()
      }
    } catch (error) {
      if (!signal.aborted) {
        show([{ label: 'error', text: (error as Error).message, error: true }])
        return undefined
      }
    } finally {
      setRunning((count) => count - 1)
    }
    return pieces[0]!
  }
  const send = async () => {
    if (!text.trim() || running > 0) return
    if (mode === 'completion') return void stream({ prompt: text }, [], [text], 'completion')
    const messages: Turn[] = [...history, { role: 'user', content: text }]
    const past = messages.map(({ role, content }) => ({ label: role, text: content }))
    setText('')
    const answer = await stream({ messages }, past, [''], 'assistant')
    if (answer === undefined) setText((typed) => typed || text)
    else setHistory([...messages, { role: 'assistant', content: answer }])
  }
  // One request of eight prompts: a browser opens too few connections for eight of one.
  const burst = () => {
    const prompt = ['live', 'then', 'never', 'always', 'go', 'be', 'not', 'see'].map(
      (word) => `${(text || examples.completion).trimEnd()} ${word}`,
    )
    stream({ prompt }, [], prompt, 'completion', 1)
  }
  const pick = (next: Mode) => {
    setMode(next)
    setShown([])
    setHistory([])
    setText(examples[next])
  }
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === 'Escape') stop()
    // The Enter that ends the composition of a character is part of it.
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      send()
    }
  }
  return (
    <section aria-label="Prompt">
      <div class="row" role="tablist" aria-label="Mode">
        {(['completion', 'chat'] as const).map((each) => (
          <button
            key={each}
            type="button"
            role="tab"
            aria-selected={mode === each}
            disabled={running > 0}
            onClick={() => pick(each)}
          >
            {each === 'chat' ? 'Chat' : 'Completion'}
          </button>
        ))}
      </div>
      <div class="transcript" ref={end} role="log" aria-live="polite" aria-label="Output">
        {shown.map(({ label, text, error }, i) => (
          <p class={error ? 'turn error' : 'turn'} key={`${label}${i}`}>
            <b>{label}</b>
            {text}
          </p>
        ))}
      </div>
      <textarea
        aria-label="Your text"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      <div class="row" style={{ marginTop: '8px' }}>
        <button type="button" class="primary" onClick={send} disabled={running > 0}>
          Send
        </button>
        <button type="button" onClick={stop} disabled={running === 0}>
          Stop
        </button>
        <button type="button" onClick={burst} disabled={running > 0}>
          Eight at once, one prefix
        </button>
      </div>
      <p class="note">Enter sends, Shift+Enter breaks the line, Escape stops.</p>
      <Controls settings={settings} change={change} />
    </section>
  )
}

function Controls({ settings, change }: { settings: Settings; change: (settings: Settings) => void }) {
  const number = (
    label: string,
    key: 'temperature' | 'topP' | 'maxTokens' | 'n',
    min: number,
    max: number,
    step: number,
  ) => (
    <label>
      {label}
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        value={settings[key]}
        onChange={(event) => {
          const value = Math.min(max, Math.max(min, Number(event.currentTarget.value)))
          change({ ...settings, [key]: step === 1 ? Math.round(value) : value })
        }}
      />
    </label>
  )
  return (
    <details open>
      <summary>Sampling</summary>
      <div class="controls">
        {number('Temperature', 'temperature', 0, 2, 0.1)}
        {number('Top p', 'topP', 0, 1, 0.05)}
        {number('New tokens', 'maxTokens', 1, 900, 1)}
        {number('Samples', 'n', 1, 8, 1)}
        <label>
          Seed
          <input
            inputMode="numeric"
            pattern="[0-9]*"
            placeholder="any"
            value={settings.seed}
            onInput={(event) => change({ ...settings, seed: event.currentTarget.value.replace(/\D/g, '') })}
          />
        </label>
        <label>
          API key
          <input
            type="password"
            placeholder="none"
            value={settings.apiKey}
            onChange={(event) => change({ ...settings, apiKey: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  )
}
