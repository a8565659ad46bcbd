import type { StepGraph } from '@flashmla/spec'
import { DisposedError } from '@flashmla/spec'
import { Graph } from '../driver/graph'
import type { BackendDevice } from './device'

/**
 * Records the operations that `record` queues. A first pass loads kernels and reserves work memory, which a recording must not;
 * the second is recorded.
 */
export function captureStep(device: BackendDevice, record: () => void): StepGraph {
  device.eager('A capture')
  let graph: Graph
  const holds: (() => void)[] = []
  const letGo = () => {
    for (const hold of holds.splice(0)) hold()
  }
  device.capturing = holds
  try {
    device.mode = 'plan'
    record()
    device.mode = 'capture'
    graph = device.own(new Graph(device.stream, record))
  } catch (error) {
    letGo()
    throw error
  } finally {
    device.mode = 'run'
  }
  return {
    replay() {
      device.alive()
      if (graph.disposed) throw new DisposedError('A captured step')
      device.eager('A replay')
      graph.replay(device.stream)
    },
    dispose() {
      if (graph.disposed) return
      device.eager('Disposing of a captured step')
      device.stream.synchronize() // a replay may still run
      device.free(graph)
      letGo()
    },
  }
}
