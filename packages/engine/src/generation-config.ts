import { join } from 'node:path'
import { CheckpointError } from '@flashmla/spec'
import { readJsonObject } from './checkpoint/json-file'

/**
 * The end-of-sequence tokens that generation_config.json names, which go before those of config.json, as in transformers;
 * undefined where it names none.
 * @throws CheckpointError when the file is no JSON object, or its eos_token_id is neither a token id nor a list of them
 */
export async function endTokensOf(directory: string): Promise<readonly number[] | undefined> {
  const file = join(directory, 'generation_config.json')
  const given = (await readJsonObject(file))?.eos_token_id ?? undefined
  if (given === undefined) return undefined
  const ids: unknown[] = Array.isArray(given) ? given : [given]
  if (!ids.every((id): id is number => Number.isSafeInteger(id) && (id as number) >= 0))
    throw new CheckpointError({
      file,
      fact: `its eos_token_id ${JSON.stringify(given)} is neither a token id nor a list of them.`,
    })
  return ids
}
