"""Where a decode's time goes, by clocks in the kernel: `node kernels/build.mjs --trace FOLDER`, then `CUBINS=FOLDER trace.py`.

SHAPES picks shapes by their place in time_decode's list. Cycles since a block's start, median and largest over the blocks that had work,
of the third of three launches in a row. Words: kernels/common/trace.h.
"""
import ctypes as C
import os

import torch

import driver
from driver import Decode, check, cuda
from time_decode import SHAPES, inputs_for, label

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


def show(name, column, worked):
    cycles = column[worked & (column > 0)]
    if len(cycles):
        print(f'| {name} | {int(cycles.median())} | {int(cycles.max())} |')


if __name__ == '__main__':
    wanted = os.environ.get('SHAPES', '8,11,13')
    for shape in [SHAPES[int(i)] for i in wanted.split(',')]:
        inputs, _, _ = inputs_for(shape)
        calls = [Decode(*x, shape[1], 576**-0.5) for x in inputs]
        for i in range(2):
            calls[i % len(calls)]()
        torch.cuda.synchronize()
        records(calls[0].module, clear=True)
        calls[2 % len(calls)]()
        torch.cuda.synchronize()
        found = records(calls[0].module)[: calls[0].grid[0]]
        since = (found - found[:, START : START + 1]) & 0xFFFFFFFF
        since[found == 0] = 0
        worked = found[:, SEGMENT] > 0
        ends = (found[:, END_NS] - found[:, START_NS].min())[worked]
        print(f'{label(shape)}: {int(worked.sum())} blocks had work; they ended after {int(ends.min())} to {int(ends.max())} ns')
        print('| cycles until | median | largest |\n|---|---|---|')
        for name, word in FIRST.items():
            show(name, since[:, word], worked)
        for segment in range(2):
            for name, word in OF_SEGMENT.items():
                show(f'{name}, segment {segment}', since[:, SEGMENT + 8 * segment + word], worked)
        show('end', since[:, END], worked)
        del inputs, calls
        torch.cuda.empty_cache()
