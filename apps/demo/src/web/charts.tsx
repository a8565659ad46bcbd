import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import type { Point } from './use-live'

interface Line {
  readonly label: string
  readonly value: (point: Point) => number
  readonly color: string
}

const height = 110
/** Seconds that the charts reach back. */
const reach = 60

function Chart({
  title,
  lines,
  points,
  max,
}: {
  title: string
  lines: Line[]
  points: readonly Point[]
  max?: number
}) {
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | null>(null)
  useEffect(() => {
    const axis = { stroke: '#8593a3', font: '11px system-ui', grid: { stroke: '#8593a333' }, ticks: { show: false } }
    const chart = new uPlot(
      {
        width: box.current!.clientWidth,
        height,
        legend: { show: false },
        cursor: { show: false },
        padding: [6, 14, 0, 0],
        scales: {
          x: { time: false, range: [-reach, 0] },
          y: { range: (_, __, high) => [0, max ?? Math.max(high * 1.1, 1)] },
        },
        axes: [
          {
            ...axis,
            size: 22,
            splits: () => [-reach, -reach / 2, 0],
            values: (_, splits) => splits.map((at) => (at === 0 ? 'now' : `−${-at} s`)),
          },
          { ...axis, size: 36 },
        ],
        series: [
          {},
          ...lines.map(({ label, color }) => ({ label, stroke: color, width: 1.5, points: { show: false } })),
        ],
      },
      [[], ...lines.map(() => [])],
      box.current!,
    )
    plot.current = chart
    const observer = new ResizeObserver(([entry]) => chart.setSize({ width: entry!.contentRect.width, height }))
    observer.observe(box.current!)
    return () => {
      observer.disconnect()
      chart.destroy()
    }
  }, [])
  useEffect(() => {
    const now = points.at(-1)?.time ?? 0
    plot.current?.setData([points.map(({ time }) => time - now), ...lines.map(({ value }) => points.map(value))])
  }, [points])
  const last = points.at(-1)
  return (
    <figure>
      <figcaption>
        {title}
        {lines.map(({ label, color }) => (
          <span key={label} style={{ color }}>
            {lines.length > 1 ? ` ${label}` : ''}
          </span>
        ))}
      </figcaption>
      <div
        ref={box}
        role="img"
        aria-label={`${title}, now ${lines.map(({ label, value }) => `${label} ${last ? value(last).toFixed(0) : 0}`).join(', ')}`}
      />
    </figure>
  )
}

export function Charts({ points }: { points: readonly Point[] }) {
  return (
    <section aria-label="Over time">
      <div class="charts">
        <Chart
          title="Tokens a second"
          points={points}
          lines={[{ label: 'generated', value: (p) => p.tokensPerSecond, color: '#2b8ae0' }]}
        />
        <Chart
          title="Sequences:"
          points={points}
          lines={[
            { label: 'running', value: (p) => p.running, color: '#2f9e63' },
            { label: 'queued', value: (p) => p.queued, color: '#d9822b' },
          ]}
        />
        <Chart
          title="Prefix cache hit rate, %"
          points={points}
          max={100}
          lines={[{ label: 'hits', value: (p) => p.hitRate, color: '#9a6ad6' }]}
        />
      </div>
    </section>
  )
}
