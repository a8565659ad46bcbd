/**
 * CUDA backend for Multi-head Latent Attention: a typed binding of the NVIDIA driver, loaded on first use.
 *
 * @example
 * import { Context, DeviceMemory, download, Stream, upload } from '@flashmla/cuda'
 * using context = new Context({ device: 0 }) // CudaUnavailableError without a driver
 * using stream = new Stream(context)
 * using memory = new DeviceMemory(stream, 4096)
 * upload(stream, memory, Float32Array.of(1, 2, 3))
 * const back = new Float32Array(3)
 * download(stream, memory, back)
 * await stream.finished()
 */
export type { AttentionPrecision, CudaBackend } from './backend/backend'
export type { CudaBackendOptions } from './backend/create'
export { createCudaBackend } from './backend/create'
export type { WeightPrecision } from './backend/weight'
export type { AppendTensors } from './decode/append'
export { append, cast } from './decode/append'
export type { DecodePlan, DecodeTensors } from './decode/decode'
export { decode, planDecode } from './decode/decode'
export type { DecodeSchedule } from './decode/schedule'
export type { DecodeShape } from './decode/shape'
export type { TableCapacity, TableStep } from './decode/tables'
export { DecodeTables } from './decode/tables'
export type { DriverApi, DriverArguments, DriverFunction } from './driver/api'
export type { DeviceInfo } from './driver/context'
export { Context, deviceInfo } from './driver/context'
export { copy, download, fill, upload } from './driver/copy'
export type { DriverOptions } from './driver/driver'
export { Driver } from './driver/driver'
export { Graph } from './driver/graph'
export type { LaunchOptions } from './driver/launch'
export { Launch } from './driver/launch'
export { DeviceMemory, PinnedMemory } from './driver/memory'
export { Kernel, Module } from './driver/module'
export { Event, Stream } from './driver/stream'
export type { TensorMapOptions } from './driver/tensor-map'
export { encodeTensorMap } from './driver/tensor-map'
export { CudaError, CudaUnavailableError } from './errors'
export type { KernelEntry, Manifest } from './kernels/library'
export { KernelLibrary } from './kernels/library'
export type { Probe, ProbedDevice, ProbeOptions } from './probe'
export { probe } from './probe'
