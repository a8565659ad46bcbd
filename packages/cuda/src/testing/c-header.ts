import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import type { Fields } from '../kernels/struct'

const TYPES = { int64_t: 'i64', int32_t: 'i32', float: 'f32' } as const

/** What a test needs of a Struct, whatever its fields. */
interface Mirrored {
  readonly name: string
  readonly bytes: number
  readonly fields: Fields
  readonly offsets: unknown
}

/** Fields of a C struct as the header writes them, with the offset that its comment claims. */
function fieldsOf(header: string, name: string) {
  const body = new RegExp(`struct ${name} \\{([^}]*)\\}`).exec(header)![1]!
  return [...body.matchAll(/^ {2}(?:const )?(\w+)(\*?) (\w+);\s*\/\/\s*(\d+)/gm)].map(
    ([, type, star, field, offset]) => ({
      field: field!,
      type: star ? 'ptr' : TYPES[type as keyof typeof TYPES],
      offset: Number(offset),
    }),
  )
}

/** Tests that `structs` are the parameter structs of a header of kernels/include, all of them; returns the header's text. */
export function testStructsOfHeader(file: string, structs: readonly Mirrored[]): string {
  const header = readFileSync(new URL(`../../../../kernels/include/${file}`, import.meta.url), 'utf8')
  test.each(structs.map((struct) => [struct.name, struct] as const))(
    '%s is the struct of the header',
    (name, struct) => {
      const expected = fieldsOf(header, name)
      expect(expected.length).toBeGreaterThan(3)
      const actual = Object.entries(struct.fields).map(([field, type]) => ({
        field,
        type,
        offset: (struct.offsets as Map<string, number>).get(field),
      }))
      expect(actual).toEqual(expected)
      expect(header).toContain(`static_assert(sizeof(${name}) == ${struct.bytes},`)
    },
  )
  test('every struct that a kernel takes is mirrored', () => {
    const names = [...header.matchAll(/^struct (\w+Params) /gm)].map((match) => match[1])
    expect(structs.map(({ name }) => name).sort()).toEqual(names.sort())
  })
  return header
}
