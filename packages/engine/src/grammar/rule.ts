/** A grammar over bytes. Rules are compared by identity, so each is built once. */
export type Rule =
  | { readonly kind: 'empty' }
  /** One byte of a set. */
  | { readonly kind: 'byte'; readonly set: Uint8Array }
  | { readonly kind: 'sequence'; readonly first: Rule; readonly rest: Rule }
  | { readonly kind: 'choice'; readonly of: readonly Rule[] }
  /** Between min and max times; max may be Infinity. */
  | { readonly kind: 'repeat'; readonly rule: Rule; readonly min: number; readonly max: number }
  /** A rule made on demand, for recursive schemas. */
  | { readonly kind: 'lazy'; readonly make: () => Rule }

export type ByteRule = Rule & { readonly kind: 'byte' }

export const empty: Rule = { kind: 'empty' }

/** One byte of the ranges, given as pairs of first and last. */
export function byte(...ranges: readonly (readonly [number, number])[]): ByteRule {
  const set = new Uint8Array(256)
  for (const [first, last] of ranges) set.fill(1, first, last + 1)
  return { kind: 'byte', set }
}

/** One byte of the rule's set that is not among `codes`. */
export function without(rule: ByteRule, codes: readonly number[]): ByteRule {
  const set = rule.set.slice()
  for (const code of codes) set[code] = 0
  return { kind: 'byte', set }
}

export function text(value: string): Rule {
  return sequence(...Array.from(new TextEncoder().encode(value), (code) => byte([code, code])))
}

export function sequence(...rules: readonly Rule[]): Rule {
  return rules.reduceRight((rest, first) => {
    if (first.kind === 'empty') return rest
    return rest.kind === 'empty' ? first : { kind: 'sequence', first, rest }
  }, empty)
}

export function choice(...of: readonly Rule[]): Rule {
  return of.length === 1 ? of[0]! : { kind: 'choice', of }
}

export function repeat(rule: Rule, min: number, max = Number.POSITIVE_INFINITY): Rule {
  return { kind: 'repeat', rule, min, max }
}

export function optional(rule: Rule): Rule {
  return choice(empty, rule)
}

export function lazy(make: () => Rule): Rule {
  let made: Rule | undefined
  return {
    kind: 'lazy',
    make: () => {
      made ??= make()
      return made
    },
  }
}
