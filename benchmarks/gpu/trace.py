"""Where a decode's time goes, by clocks in the kernel: `node kernels/build.mjs --trace FOLDER`, then `CUBINS=FOLDER trace.py`.

SHAPES picks shapes as in compare.py. Nanoseconds since the first block's start, over the blocks that had work, of the last of four launches in a row,
so that each overlaps the end of what comes before; by the multiprocessors' clock from a block's own start on. Words: kernels/common/trace.h.
"""
import ctypes as C
import os

import torch

import driver
from compare import shapes_of
from driver import Decode, check, cuda
from time_decode import inputs_for, label

WORDS = 32
START_NS, START, END, END_NS, SEGMENT = 0, 1, 30, 31, 8
FIRST = {'precedent': 2, 'located': 3, 'queries asked': 4}
OF_SEGMENT = {'found': 0, 'queries': 1, 'scores': 2, 'product': 3, 'products': 4, 'written': 5}


def records(module, clear=False):
    """The blocks' records [blocks, 32] of a traced module; `clear` zeroes them."""
    address, size = C.c_uint64(), C.c_size_t()
    check(cuda.cuModuleGetGlobal_v2(C.byref(address), C.byref(size), driver._modules[module], b'flashmla_trace_words'), 'no trace in there')
    words = torch.zeros(size.value // 4, dtype=torch.int32)
    host = C.c_void_p(words.data_ptr())
    if clear:
        check(cuda.cuMemcpyHtoD_v2(address, host, size), 'clear')
    else:
        check(cuda.cuMemcpyDtoH_v2(host, address, size), 'read')
    return words.view(-1, WORDS).long() & 0xFFFFFFFF


def times_of(found):
    """Nanoseconds of a word of each block since the first block's start; and each block's cycles in one of them."""
    start = (found[:, START_NS] - found[:, START_NS].min()).double()
    cycles = (found - found[:, START : START + 1]) & 0xFFFFFFFF
    per_ns = cycles[:, END].double() / ((found[:, END_NS] - found[:, START_NS]) & 0xFFFFFFFF)
    return (lambda word: start + cycles[:, word] / per_ns), per_ns


def show(name, ns):
    if len(ns):
        print(f'| {name} | {int(ns.min())} | {int(ns.median())} | {int(ns.max())} |')


if __name__ == '__main__':
    wanted = os.environ.get('SHAPES', '8,11,13')
    for shape in shapes_of(wanted):
        inputs, _, _ = inputs_for(shape)
        calls = [Decode(*x, shape[1], 576**-0.5, expects=True) for x in inputs]
        calls[0]()
        torch.cuda.synchronize()
        records(calls[0].module, clear=True)
        for i in range(4):
            calls[i % len(calls)]()
        torch.cuda.synchronize()
        found = records(calls[0].module)[: calls[0].grid[0]]
        found = found[found[:, SEGMENT] > 0]
        at, per_ns = times_of(found)
        print(f'{label(shape)}: {len(found)} blocks had work, at {per_ns.median():.2f} GHz')
        print('| ns until | earliest | median | latest |\n|---|---|---|---|')
        words = dict(FIRST)
        for segment in range(2):
            words |= {f'{name}, segment {segment}': SEGMENT + 8 * segment + word for name, word in OF_SEGMENT.items()}
        for name, word in (words | {'end': END}).items():
            there = found[:, word] > 0
            show(name, at(word)[there])
        del inputs, calls
        torch.cuda.empty_cache()
