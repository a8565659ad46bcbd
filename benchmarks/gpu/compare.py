"""Compiled versions of the decode kernels beside each other, in turns: `compare.py FOLDER FOLDER ...`, each with a cubin and its manifest.

SHAPES picks shapes by their place in time_decode's list. Each version's output is compared with the first one's. Versions must take
the same parameters and grids: `git worktree` and `node kernels/build.mjs` make a folder of an older one.
"""
import os
import sys

import torch

from driver import KERNELS, Decode, load_manifest
from time_decode import SHAPES, inputs_for, label
from turns import difference, in_turns

ROUNDS = int(os.environ.get('ROUNDS', '9'))


def calls_of(folder, inputs, s_q, launches):
    calls = [Decode(*x, s_q, 576**-0.5) for x in inputs]
    for call in calls:
        call.module = os.path.join(folder, call.module)
    return [calls[i % len(calls)] for i in range(launches)]


def add(folder):
    """Lets the driver find the folder's kernels, by the whole path of their module."""
    folder = os.path.abspath(folder)
    for (symbol, module), kernel in load_manifest(folder).items():
        KERNELS[(symbol, os.path.join(folder, module))] = kernel
    return folder


if __name__ == '__main__':
    folders = [add(folder) for folder in sys.argv[1:]]
    wanted = os.environ.get('SHAPES')
    shapes = SHAPES if not wanted else [SHAPES[int(i)] for i in wanted.split(',')]
    print('| b x s_q x h_q, length |', *[f'{os.path.basename(f)} us |' for f in folders], flush=True)
    print('|---|' + '---|' * len(folders))
    for shape in shapes:
        inputs, _, launches = inputs_for(shape)
        contenders = [calls_of(folder, inputs, shape[1], launches) for folder in folders]
        outs = []
        for calls in contenders:
            calls[0]()
            torch.cuda.synchronize()
            outs.append(calls[0].out.clone())
        apart = [difference(out, outs[0]) for out in outs]
        times = in_turns(contenders, ROUNDS)
        print(f'| {label(shape)} |', *[f'{us:.1f}{f" ({d:.0e})" if d else ""} |' for us, d in zip(times, apart)], flush=True)
        del inputs, contenders, outs
        torch.cuda.empty_cache()
