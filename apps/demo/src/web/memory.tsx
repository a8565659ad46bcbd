import type { LiveState } from './use-live'

/** What the live sequences need in this cache, and what they would need in a plain one. */
export function Memory({ live }: { live: LiveState }) {
  const { model, sequences, stats, pageSize } = live
  const tokens = sequences.reduce((sum, each) => sum + each.tokens, 0)
  const rows = [
    { name: 'Latent pages, shared', bytes: stats.pages.used * pageSize * model.latentBytesPerToken, ours: true },
    { name: 'Latent, each its own', bytes: tokens * model.latentBytesPerToken, ours: true },
    { name: 'Plain keys and values', bytes: tokens * model.mhaBytesPerToken, ours: false },
  ]
  const most = Math.max(1, ...rows.map(({ bytes }) => bytes))
  return (
    <section aria-label="Memory">
      <h2>Memory of the live sequences</h2>
      <div class="bars">
        {rows.map(({ name, bytes, ours }) => (
          <>
            <span>{name}</span>
            <div class={ours ? 'bar ours' : 'bar'} style={{ width: `${(100 * bytes) / most}%` }} />
            <span>{size(bytes)}</span>
          </>
        ))}
      </div>
      <p class="note">
        A token takes {size(model.latentBytesPerToken)} here over all layers, and would take{' '}
        {size(model.mhaBytesPerToken)} as full keys and values:{' '}
        {(model.mhaBytesPerToken / model.latentBytesPerToken).toFixed(1)} times as much.
      </p>
    </section>
  )
}

function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`
  return bytes < 1 << 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`
}
