import { useEffect, useState } from 'preact/hooks'
import type { LiveState } from '../server/live'
import { headers } from './api'
import { serverEvents } from './events'

export type { LiveState }

export interface Point {
  readonly time: number
  readonly tokensPerSecond: number
  readonly queued: number
  readonly running: number
  /** Share of the prompt tokens found in the prefix cache, since the server began. */
  readonly hitRate: number
}

const keptPoints = 240

/** The live state of the server and its recent past; undefined until it comes, `offline` when it breaks off. */
export function useLive(apiKey: string) {
  const [live, setLive] = useState<LiveState>()
  const [points, setPoints] = useState<readonly Point[]>([])
  const [offline, setOffline] = useState(false)
  useEffect(() => {
    const controller = new AbortController()
    const follow = async () => {
      // Not that of an earlier connection: the server may have begun anew, and counts from 0.
      let before: LiveState | undefined
      const response = await fetch('/live', { headers: headers(apiKey), signal: controller.signal })
      if (!response.ok) throw new Error(String(response.status))
      setOffline(false)
      for await (const data of serverEvents(response)) {
        const state: LiveState = JSON.parse(data)
        setLive(state)
        if (before && state.time - before.time < 250) continue
        const seconds = before ? (state.time - before.time) / 1000 : 1
        const { stats } = state
        const point = {
          time: state.time / 1000,
          tokensPerSecond: before ? (stats.generated - before.stats.generated) / seconds : 0,
          queued: stats.queued,
          running: stats.running,
          hitRate: stats.prompt > 0 ? (100 * stats.cached) / stats.prompt : 0,
        }
        before = state
        setPoints((list) => [...list.slice(-keptPoints), point])
      }
    }
    const run = async () => {
      while (!controller.signal.aborted) {
        await follow().catch(() => {})
        if (controller.signal.aborted) return
        setOffline(true)
        await new Promise((resolve) => setTimeout(resolve, 1500))
      }
    }
    run()
    return () => controller.abort()
  }, [apiKey])
  return { live, points, offline }
}
