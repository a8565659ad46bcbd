"""When the blocks of a decode start, wait and end in replayed graphs, where calls overlap as they are timed: `node kernels/build.mjs --trace FOLDER`,
then `SHAPES=32x1x64x4096 trace_replays.py FOLDER FOLDER?merge=0 ...`, with versions and shapes as in compare.py.

Microseconds from the end of what comes before, as half of the blocks see it: the least, a tenth, half, nine tenths and the most of the blocks, medians of
some replays, of their first segment. For blocks that take parts in, half and the most of them. Words: kernels/common/trace.h.

It is the last call of a graph that is seen. No other one fetches beside its last blocks, so it ends 1 to 4 microseconds earlier than those before it.
"""
import os
import sys

import torch

from compare import calls_of, shapes_of
from time_decode import inputs_for, label
from trace import END, FIRST, OF_SEGMENT, SEGMENT, START, records, times_of
from turns import captured

LAUNCHES, REPLAYS = 12, 7
PART, PARTS = 24, 3
SHARES = torch.tensor([0, 0.1, 0.5, 0.9, 1], dtype=torch.double)
WORDS = {'start': START, **FIRST, **{name: SEGMENT + word for name, word in OF_SEGMENT.items()}, 'end': END}
TAKING = {'products': SEGMENT + OF_SEGMENT['products'], **{f'part {n // 2 + 1} {"added" if n % 2 else "there"}': PART + n for n in range(2 * PARTS)},
          'written': SEGMENT + OF_SEGMENT['written']}


def show(rows):
    for name, values in rows.items():
        if values:
            print(f'| {name} |', *[f'{us:.1f} |' for us in (torch.stack(values).median(0).values / 1e3).tolist()], flush=True)


if __name__ == '__main__':
    for version in sys.argv[1:]:
        for shape in shapes_of(os.environ.get('SHAPES', '8,11,13')):
            inputs, _, _ = inputs_for(shape)
            calls = calls_of(version, inputs, shape[1], LAUNCHES)
            graph = captured(calls)
            records(calls[0].module, clear=True)
            of_all, of_taking = {name: [] for name in WORDS}, {name: [] for name in TAKING}
            for _ in range(REPLAYS):
                for _ in range(2):
                    graph.replay()
                torch.cuda.synchronize()
                found = records(calls[0].module)[: calls[0].grid[0]]
                found = found[found[:, SEGMENT] > 0]
                at, _ = times_of(found)
                zero = at(FIRST['precedent']).median()
                for name, word in WORDS.items():
                    if bool((found[:, word] > 0).all()):
                        of_all[name].append(torch.quantile(at(word) - zero, SHARES))
                for name, word in TAKING.items():
                    takes = (found[:, PART] > 0) & (found[:, word] > 0)
                    if bool(takes.any()):
                        of_taking[name].append(torch.stack([at(word)[takes].median(), at(word)[takes].max()]) - zero)
            print(f'{version} {label(shape)}, {calls[0].symbol}\n| us | least | 10 % | half | 90 % | most |\n|---|---|---|---|---|---|')
            show(of_all)
            if of_taking['products']:
                print('| us, blocks that take parts in | half | most |\n|---|---|---|')
                show(of_taking)
            del inputs, calls, graph
            torch.cuda.empty_cache()
