import { fork } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { FlashMlaError } from '@flashmla/spec'
import { Context, type DeviceInfo, deviceInfo } from './driver/context'
import { Driver, type DriverOptions, versionText } from './driver/driver'
import { KernelLibrary, readManifest, SMALLEST_KERNEL, targetFor } from './kernels/library'

export interface ProbedDevice extends DeviceInfo {
  /** Symbols of the kernels that would run; empty when none fit. */
  readonly kernels: readonly string[]
  /** Why these, or why none. */
  readonly why: string
}

export type Probe =
  | { readonly available: true; readonly driverVersion: string; readonly devices: readonly ProbedDevice[] }
  | { readonly available: false; readonly reason: string }

/** What this process's driver sees. Native code runs here: `probe()` keeps a crash in it away. */
export function probeHere(options: DriverOptions = {}): Probe {
  try {
    const driver = new Driver(options)
    const manifest = readManifest()
    const devices = Array.from({ length: driver.deviceCount }, (_, ordinal) => {
      const info = deviceInfo(driver, ordinal)
      try {
        const { target, why } = targetFor(info.computeCapability)
        const kernels = manifest.kernels.filter((entry) => entry.target === target).map(({ symbol }) => symbol)
        tryOut(driver, ordinal)
        return { ...info, kernels, why }
      } catch (error) {
        return { ...info, kernels: [], why: reasonOf(error) }
      }
    })
    return { available: true, driverVersion: versionText(driver.version), devices }
  } catch (error) {
    return { available: false, reason: reasonOf(error) }
  }
}

// A device can be listed and yet refuse a context (in exclusive use, out of memory) or the code (a driver older than the PTX).
function tryOut(driver: Driver, device: number): void {
  using context = new Context({ device, driver })
  using library = new KernelLibrary(context)
  library.kernel(SMALLEST_KERNEL)
}

function reasonOf(error: unknown): string {
  if (FlashMlaError.isInstance(error) || error instanceof Error) return error.message
  return String(error)
}

/** What a timer takes: one set to more fires at once. */
const LONGEST_TIMEOUT = 2 ** 31 - 1

export interface ProbeOptions {
  /** How long the driver may take. Default 20 seconds. */
  readonly timeoutMs?: number
  /** @internal Script of the child process, in tests. */
  readonly script?: string
}

/**
 * Asks the driver in a child process, so that a crash or a hang in native code stays there. Never rejects: what went wrong is
 * the reason of `available: false`.
 */
export function probe(options: ProbeOptions = {}): Promise<Probe> {
  const { timeoutMs = 20_000, script = join(dirname(fileURLToPath(import.meta.url)), 'probe-child.js') } = options
  return new Promise((resolve) => {
    let answer: Probe | undefined
    const child = fork(script, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] })
    let errors = ''
    child.stderr?.on('data', (chunk) => {
      errors = `${errors}${chunk}`.slice(-2000)
    })
    let late = false
    const stop = () => {
      late = true
      child.kill('SIGKILL')
    }
    const timer = setTimeout(stop, Math.min(timeoutMs, LONGEST_TIMEOUT))
    const end = (reason: string) => {
      clearTimeout(timer)
      resolve(answer ?? { available: false, reason })
    }
    child.on('message', (message) => {
      answer = message as Probe
    })
    child.on('error', (error) => end(`The probe could not be started: ${error.message}`))
    child.on('close', (code, signal) => {
      const how = late ? `did not answer within ${timeoutMs} ms` : `ended with ${signal ?? `code ${code}`}`
      end(`The NVIDIA driver's probe ${how}.${errors ? `\n${errors.trim()}` : ''}`)
    })
  })
}
