import { InvalidArgumentError } from '@flashmla/spec'

/** An option's text as a number, or a typed error that names the option. */
export function number(name: string, text: string, low: number, high = Number.MAX_SAFE_INTEGER, whole = true): number {
  const value = Number(text)
  if (text.trim() !== '' && value >= low && value <= high && (!whole || Number.isInteger(value))) return value
  const range = high === Number.MAX_SAFE_INTEGER ? `of ${low} or more` : `from ${low} to ${high}`
  throw new InvalidArgumentError(`--${name} can't be ${text}.`, `Give a ${whole ? 'whole ' : ''}number ${range}.`)
}

/** One of a few words. */
export function choice<T extends string>(name: string, text: string, choices: readonly T[]): T {
  const found = choices.find((word) => word === text)
  if (found) return found
  throw new InvalidArgumentError(`--${name} can't be ${text}.`, `Choose ${choices.join(', ')}.`)
}

/** 24GiB, 512MiB, 80GB or plain bytes. */
export function memory(name: string, text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?$/i.exec(text.trim())
  if (!match)
    throw new InvalidArgumentError(`--${name} can't be ${text}.`, 'Give bytes, or an amount like 80GB or 24GiB.')
  const unit = (match[2] ?? 'B').toUpperCase()
  const base = unit.includes('I') ? 1024 : 1000
  return Math.floor(Number(match[1]) * base ** ['B', 'K', 'M', 'G', 'T'].indexOf(unit[0]!))
}
