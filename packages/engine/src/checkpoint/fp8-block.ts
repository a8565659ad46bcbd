import { e4m3ToFloat } from '@flashmla/latent'
import { UnsupportedError } from '@flashmla/spec'

/** Rows and columns that share one scale, as DeepSeek-V3 ships (`quantization_config.weight_block_size`). */
export const FP8_BLOCK = 128

const values = Float32Array.from({ length: 256 }, (_, byte) => e4m3ToFloat(byte))

/**
 * weight[r, c] = e4m3(source[r, c]) · scaleInv[⌊r / 128⌋, ⌊c / 128⌋] over `rows` rows from `firstRow`, which is a multiple
 * of 128. Formula: DeepSeek-V3, inference/kernel.py, weight_dequant.
 */
export function dequantizeRows(
  target: Float32Array,
  source: Uint8Array,
  scaleInv: Float32Array,
  firstRow: number,
  rows: number,
  columns: number,
): void {
  const scaleColumns = Math.ceil(columns / FP8_BLOCK)
  for (let r = 0; r < rows; r++) {
    const scales = Math.floor((firstRow + r) / FP8_BLOCK) * scaleColumns
    for (let c = 0; c < columns; c++) {
      target[r * columns + c] = values[source[r * columns + c]!]! * scaleInv[scales + Math.floor(c / FP8_BLOCK)]!
    }
  }
}

/**
 * Weights quantized in another way than DeepSeek's would load as numbers without their scales.
 * @throws UnsupportedError naming what config.json asks for
 */
export function checkQuantization(config: Record<string, unknown>): void {
  const quantization = config.quantization_config as { quant_method?: unknown; weight_block_size?: unknown } | undefined
  if (!quantization) return
  const { quant_method: method, weight_block_size: block } = quantization
  if (method === 'fp8' && String(block) === `${FP8_BLOCK},${FP8_BLOCK}`) return
  throw new UnsupportedError(
    `config.json asks for ${String(method)} weights in blocks of ${String(block)}.`,
    `Use the float checkpoint, or one in fp8 with blocks of ${FP8_BLOCK} × ${FP8_BLOCK} as DeepSeek-V3 ships.`,
  )
}
