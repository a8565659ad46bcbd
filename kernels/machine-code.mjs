// Looks through machine code for an instruction that ptxas 13.0 gets wrong. Of `h = max(min(x, n), 0)` and `h == n` it makes one
// VIMNMX.RELU with a predicate, and takes that for the comparison; it says x <= n. A kernel that has one is refused here: put a shuffle, or
// anything else that ptxas can't see through, between the two. It is known from Hopper on (sm_90 to sm_120 in PTX too).

/** VIMNMX by its second operand: a register, a constant, a uniform register. */
const VIMNMX = [0x248, 0x848, 0xc48]
/** The predicate that is always true: no predicate is written. */
const NONE = 7

/** Sections of a 64-bit ELF file, by name. */
function sections(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const at = Number(view.getBigUint64(0x28, true))
  const [size, count, names] = [0x3a, 0x3c, 0x3e].map((offset) => view.getUint16(offset, true))
  const header = (i) => {
    const start = at + i * size
    const [offset, bytes] = [0x18, 0x20].map((field) => Number(view.getBigUint64(start + field, true)))
    return { name: view.getUint32(start, true), offset, bytes }
  }
  const strings = header(names)
  return Array.from({ length: count }, (_, i) => {
    const { name, offset, bytes } = header(i)
    const start = strings.offset + name
    return {
      name: file.subarray(start, file.indexOf(0, start)).toString(),
      code: file.subarray(offset, offset + bytes),
    }
  })
}

/** Places of such instructions in a cubin, `kernel+0x12a0`. Instructions are 16 bytes from Volta on. */
export function suspects(cubin) {
  return sections(cubin)
    .filter(({ name }) => name.startsWith('.text.'))
    .flatMap(({ name, code }) => {
      const found = []
      for (let at = 0; at + 16 <= code.length; at += 16) {
        const high = code.readUInt32LE(at + 8)
        const predicates = [(high >> 17) & 7, (high >> 20) & 7]
        if (VIMNMX.includes(code.readUInt16LE(at) & 0xfff) && predicates.some((predicate) => predicate !== NONE))
          found.push(`${name.slice('.text.'.length)}+0x${at.toString(16)}`)
      }
      return found
    })
}
