"""When the blocks of a decode start, wait and end in replayed graphs, where calls overlap as they are timed: `node kernels/build.mjs --trace FOLDER`,
then `SHAPES=32x1x64x4096 trace_replays.py FOLDER FOLDER?merge=0 ...`, with versions and shapes as in compare.py.

Microseconds from the end of what comes before, as half of the blocks see it: the least, a tenth, half, nine tenths and the most of the blocks, medians of
some replays, of their first segment. For blocks that take parts in, half and the most of them. Words: kernels/common/trace.h.
"""
import os
import sys

import torch

from compare import add, shapes_of
from driver import Decode
from time_decode import inputs_for, label
from trace import END, END_NS, FIRST, OF_SEGMENT, SEGMENT, START, START_NS, records
from turns import captured

LAUNCHES, REPLAYS = 12, 7
PART, PARTS = 24, 3
SHARES = torch.tensor([0, 0.1, 0.5, 0.9, 1], dtype=torch.double)
WORDS = {'start': START, **FIRST, **{name: SEGMENT + word for name, word in OF_SEGMENT.items()}, 'end': END}
TAKING = {'products': SEGMENT + OF_SEGMENT['products'], **{f'part {n // 2 + 1} {"added" if n % 2 else "there"}': PART + n for n in range(2 * PARTS)},
          'written': SEGMENT + OF_SEGMENT['written']}


def times_of(found):
    """Nanoseconds of a word of each block, from the median end of what comes before."""
    start = (found[:, START_NS] - found[:, START_NS].min()).double()
    cycles = (found - found[:, START : START + 1]) & 0xFFFFFFFF
    per_ns = (cycles[:, END].double() / ((found[:, END_NS] - found[:, START_NS]) & 0xFFFFFFFF)).median()
    zero = (start + cycles[:, FIRST['precedent']] / per_ns).median()
    return lambda word: start + cycles[:, word] / per_ns - zero


def show(rows):
    for name, values in rows.items():
        if values:
            print(f'| {name} |', *[f'{us:.1f} |' for us in (torch.stack(values).median(0).values / 1e3).tolist()], flush=True)


if __name__ == '__main__':
    for version in sys.argv[1:]:
        folder, _, choices = version.partition('?')
        tune = {name: int(value) for name, value in (choice.split('=') for choice in choices.split('&') if choice)}
        folder = add(folder)
        for shape in shapes_of(os.environ.get('SHAPES', '8,11,13')):
            inputs, _, _ = inputs_for(shape)
            calls = [Decode(*x, shape[1], 576**-0.5, tokens=int(x[3].sum()), longest=int(x[3].max()), **tune) for x in inputs]
            for call in calls:
                call.module = os.path.join(folder, call.module)
            graph = captured([calls[i % len(calls)] for i in range(LAUNCHES)])
            records(calls[0].module, clear=True)
            of_all, of_taking = {name: [] for name in WORDS}, {name: [] for name in TAKING}
            for _ in range(REPLAYS):
                for _ in range(2):
                    graph.replay()
                torch.cuda.synchronize()
                found = records(calls[0].module)[: calls[0].grid[0]]
                found = found[found[:, SEGMENT] > 0]
                at = times_of(found)
                for name, word in WORDS.items():
                    if bool((found[:, word] > 0).all()):
                        of_all[name].append(torch.quantile(at(word), SHARES))
                for name, word in TAKING.items():
                    takes = (found[:, PART] > 0) & (found[:, word] > 0)
                    if bool(takes.any()):
                        of_taking[name].append(torch.stack([at(word)[takes].median(), at(word)[takes].max()]))
            print(f'{version} {label(shape)}, {calls[0].symbol}\n| us | least | 10 % | half | 90 % | most |\n|---|---|---|---|---|---|')
            show(of_all)
            if of_taking['products']:
                print('| us, blocks that take parts in | half | most |\n|---|---|---|')
                show(of_taking)
            del inputs, calls, graph
            torch.cuda.empty_cache()
