"""Decodes whose blocks wait for each other, where they can't all run at once: other kernels hold multiprocessors, or another decode does.

Prints how many results were those of a launch alone; a launch that waits for ever is up to the caller's time limit.
"""
import os
import random
import sys

import torch

import oracle
from driver import Decode

SCALE = 576 ** -0.5


def decode_of(lengths, h_q, **tune):
    call = Decode(*oracle.make_inputs(lengths, 1, h_q, 64, seed=len(lengths)), 1, SCALE, **tune)
    call()
    torch.cuda.synchronize()
    return call, call.out.clone(), call.lse.clone()


def right(call, out, lse):
    same = torch.equal(call.out, out) and torch.equal(call.lse, lse) and call.clean()
    call.out.fill_(float('nan'))
    call.lse.fill_(float('nan'))
    return same


def hold_multiprocessors(streams, cycles):
    """A block on each of some streams: a decode's block finds no place beside it."""
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)


if __name__ == '__main__':
    random.seed(1)
    tune = dict(merge=False, share=True)
    calls = [decode_of([4641, 45118, 1730, 1696], 128, **tune), decode_of([4096] * 8, 128, **tune), decode_of([20000], 64, **tune)]
    streams = [torch.cuda.Stream() for _ in range(140)]
    total = good = 0
    for trial in range(60):
        call, out, lse = calls[trial % len(calls)]
        hold_multiprocessors(random.sample(streams, random.choice((8, 40, 100, 140))), random.choice((20_000, 100_000, 400_000)))
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        good += right(call, out, lse)
        total += 1
    for _ in range(30):
        for _ in range(4):
            for (call, _, _), stream in zip(calls, streams):
                with torch.cuda.stream(stream):
                    call()
        torch.cuda.synchronize()
        good += sum(right(*each) for each in calls)
        total += len(calls)
    print(f'crowded: {good} of {total} results are those of a launch alone')
    sys.stdout.flush()
    os._exit(0 if good == total else 1)
