import { useEffect, useRef, useState } from 'preact/hooks'
import type { LiveState } from './use-live'

/** One hue a request, far apart for neighbours (golden angle). */
export function hue(request: number): number {
  return Math.round((request * 137.508 + 205) % 360)
}

/** The pool as a grid of pages: a colour a request, a ring where several sequences hold the page. */
export function Pool({ live }: { live: LiveState }) {
  const canvas = useRef<HTMLCanvasElement>(null)
  const [width, setWidth] = useState(0)
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(entry!.contentRect.width))
    observer.observe(canvas.current!)
    return () => observer.disconnect()
  }, [])
  const { holders, sequences, stats, pageSize } = live
  const shared = holders.filter((count) => count > 1).length
  useEffect(() => {
    if (width > 0) draw(canvas.current!, live, width)
  }, [live, width])
  const { used, cached, free } = stats.pages
  return (
    <div>
      <h2>
        Cache: {stats.pages.total} pages of {pageSize} tokens
      </h2>
      <canvas
        ref={canvas}
        class="pool"
        role="img"
        aria-label={`${used} pages in use by ${sequences.length} sequences, ${shared} of them shared; ${cached} remembered; ${free} free`}
        data-used={used}
        data-shared={shared}
        data-cached={cached}
        data-free={free}
      />
      <div class="legend">
        <span>
          <i class="used" />
          {used} in use, a colour a request
        </span>
        <span>
          <i class="shared" />
          {shared} shared by several sequences
        </span>
        <span>
          <i class="cached" />
          {cached} remembered prompts
        </span>
        <span>
          <i class="free" />
          {free} free
        </span>
      </div>
    </div>
  )
}

function draw(canvas: HTMLCanvasElement, { owner, holders, sequences }: LiveState, width: number): void {
  const style = getComputedStyle(canvas)
  const color = (name: string) => {
    // A custom property keeps light-dark(…) unresolved; a colour property resolves it.
    canvas.style.color = `var(${name})`
    return style.color
  }
  const [free, cached, ink] = [color('--free'), color('--cached'), color('--ink')]
  const cell = Math.max(7, Math.min(18, Math.floor(Math.sqrt((width * 230) / owner.length))))
  const columns = Math.max(1, Math.floor(width / cell))
  const height = Math.ceil(owner.length / columns) * cell
  const scale = window.devicePixelRatio
  canvas.width = Math.round(width * scale)
  canvas.height = Math.round(height * scale)
  canvas.style.height = `${height}px`
  const context = canvas.getContext('2d')!
  context.scale(scale, scale)
  const inner = cell - (cell > 9 ? 2 : 1)
  owner.forEach((who, page) => {
    const x = (page % columns) * cell
    const y = Math.floor(page / columns) * cell
    context.fillStyle = who === -1 ? free : who === -2 ? cached : `hsl(${hue(sequences[who]!.request)} 68% 54%)`
    context.fillRect(x, y, inner, inner)
    if (holders[page]! > 1) {
      context.strokeStyle = ink
      context.lineWidth = 2
      context.strokeRect(x + 1, y + 1, inner - 2, inner - 2)
    }
  })
}
