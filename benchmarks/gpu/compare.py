"""Compiled versions of the decode kernels beside each other, in turns: `compare.py FOLDER FOLDER?overhead=3&merge=0 ...`.

A folder has cubins and their manifest; what follows it are choices of the driver's Decode. SHAPES picks shapes by their place in
time_decode's list, or names others: `5,8x1x16x4096,4x1x128x100x200x300x400` (the last with a length for each sequence). PEERS adds FlashMLA.
Each version's output is compared with the first one's. Versions must take the same parameters and grids: `git worktree` and `node
kernels/build.mjs` make a folder of an older one.
"""
import os
import sys

import torch

from driver import KERNELS, Decode, load_manifest
from time_decode import SHAPES, inputs_for, label
from turns import difference, in_turns

SCALE = 576**-0.5
WORKSPACE = ('partial_out', 'partial_lse', 'splits', 'parts_ready')


def add(folder):
    """Lets the driver find the folder's kernels, by the whole path of their module."""
    folder = os.path.abspath(folder)
    for (symbol, module), kernel in load_manifest(folder).items():
        KERNELS[(symbol, os.path.join(folder, module))] = kernel
    return folder


def calls_of(version, inputs, s_q, launches, like=None):
    """Launches of a version, over all sets of inputs; in the buffers of those of `like`: where buffers are makes up to 1 %."""
    folder, _, choices = version.partition('?')
    tune = {name: int(value) for name, value in (choice.split('=') for choice in choices.split('&') if choice)}
    folder = add(folder)
    calls = [Decode(*x, s_q, SCALE, expects=True, **tune) for x in inputs]
    for call in calls:
        call.module = os.path.join(folder, call.module)
    for call, other in zip(calls, like or []):
        for field in ('out', 'lse', *(WORKSPACE if call.symbol == other.symbol else ())):
            setattr(call.params, field, getattr(other.params, field))
        call.out, call.lender = other.out, other  # whose buffers live as long
    return [calls[i % len(calls)] for i in range(launches)]


def flashmla_calls(inputs, s_q, launches):
    from side_by_side import PEERS, FlashMla, without_spare

    calls = [FlashMla(PEERS, q.view(-1, s_q, *q.shape[1:]), kv, without_spare(kv, table, seq_lens), seq_lens, SCALE) for q, kv, table, seq_lens in inputs]
    return [calls[i % len(calls)].launch for i in range(launches)]


def shapes_of(words):
    for word in words.split(','):
        if 'x' not in word:
            yield SHAPES[int(word)]
            continue
        b, s_q, h_q, *lengths = [int(n) for n in word.split('x')]
        yield b, s_q, h_q, lengths if len(lengths) > 1 else lengths[0]


if __name__ == '__main__':
    versions = sys.argv[1:]
    peers = bool(os.environ.get('PEERS'))
    names = [os.path.basename(version) for version in versions] + ['FlashMLA'] * peers
    print('| b x s_q x h_q, length |', *[f'{name} us |' for name in names], flush=True)
    print('|---|' + '---|' * len(names))
    wanted = os.environ.get('SHAPES')
    for shape in SHAPES if not wanted else shapes_of(wanted):
        inputs, _, launches = inputs_for(shape)
        contenders = []
        for version in versions:
            contenders.append(calls_of(version, inputs, shape[1], launches, contenders[0] if contenders else None))
        outs = []
        for calls in contenders:
            calls[0]()
            torch.cuda.synchronize()
            outs.append(calls[0].out.clone())
        apart = [difference(out, outs[0]) for out in outs] + [0] * peers
        if peers:
            contenders.append(flashmla_calls(inputs, shape[1], launches))
        times = in_turns(contenders)
        print(f'| {label(shape)} |', *[f'{us:.1f}{f" ({d:.0e})" if d else ""} |' for us, d in zip(times, apart)], flush=True)
        del inputs, contenders, outs
        torch.cuda.empty_cache()
