"""Energy of a decode at the card's power limit: ours and, with PEERS, FlashMLA and FlashAttention-3, two seconds of replays each.

`energy.py FOLDER ...` takes versions of our kernels as compare.py does, and with PEERS FlashMLA. Where the card is at its limit a call takes its energy divided by that power, whatever its clock could be. SHAPES as in time_decode.
Then a matrix product, and where there is an nvcc the decode kernel's products alone.
"""
import ctypes as C
import os
import sys
import time

import torch

from compare import calls_of, flashmla_calls, shapes_of
from driver import CUBIN
from probes import products
from time_decode import inputs_for, label
from turns import captured

nvml = C.CDLL('libnvidia-ml.so.1')


class Card:
    def __init__(self):
        self.handle = C.c_void_p()
        for name, *args in (('nvmlInit_v2',), ('nvmlDeviceGetHandleByIndex_v2', 0, C.byref(self.handle))):
            if getattr(nvml, name)(*args):
                sys.exit(f'{name} failed: no energy counter here')

    def millijoules(self):
        value = C.c_ulonglong()
        nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle, C.byref(value))
        return value.value

    def megahertz(self):
        value = C.c_uint()
        nvml.nvmlDeviceGetClockInfo(self.handle, 1, C.byref(value))
        return value.value


def spent(card, calls, seconds=2.0):
    """Microseconds and millijoules a call, watts, and the clock at the end, once the card has found its clock."""
    graph = captured(calls)

    def replay_for(seconds):
        start, replays = time.time(), 0
        while time.time() - start < seconds:
            for _ in range(20):
                graph.replay()
            torch.cuda.synchronize()
            replays += 20
        return replays, time.time() - start

    replay_for(0.5)
    energy = card.millijoules()
    replays, elapsed = replay_for(seconds)
    clock, energy = card.megahertz(), card.millijoules() - energy
    count = replays * len(calls)
    return elapsed * 1e6 / count, energy / count, energy / 1e3 / elapsed, clock


def ours_and_peers(shape):
    from side_by_side import contenders_for

    return ('ours', 'FlashMLA', 'FlashAttention-3'), contenders_for(shape)[0][:3]


def versions_for(shape, versions, peers):
    inputs, _, launches = inputs_for(shape)
    names = [os.path.basename(version) for version in versions] + ['FlashMLA'] * peers
    contenders = [calls_of(version, inputs, shape[1], launches) for version in versions]
    return names, contenders + ([flashmla_calls(inputs, shape[1], launches)] if peers else [])


if __name__ == '__main__':
    card = Card()
    wanted = os.environ.get('SHAPES', '3,4,5,6,7')
    print('| b x s_q x h_q, length | kernel | us | mJ | W | MHz |\n|---|---|---|---|---|---|', flush=True)
    for shape in shapes_of(wanted):
        peers, versions = bool(os.environ.get('PEERS')), sys.argv[1:]
        if peers and not versions:
            names, contenders = ours_and_peers(shape)
        else:
            names, contenders = versions_for(shape, versions or [CUBIN], peers)
        for name, calls in zip(names, contenders):
            us, mj, watts, mhz = spent(card, calls)
            print(f'| {label(shape)} | {name} | {us:.1f} | {mj:.1f} | {watts:.0f} | {mhz} |', flush=True)
        del contenders
        torch.cuda.empty_cache()
    a = torch.randn(8192, 8192, device='cuda').bfloat16()
    b = torch.randn(8192, 8192, device='cuda').bfloat16()
    us, mj, watts, mhz = spent(card, [lambda: a @ b] * 4)
    print(f'| matrix product 8192^3 | cuBLAS | {us:.1f} | {mj:.1f} | {watts:.0f} | {mhz} |')
    print('\n| products alone | TFLOP/s | mJ a GFLOP | W | MHz |\n|---|---|---|---|---|')
    for name, call, gflop in products():
        us, mj, watts, mhz = spent(card, [call] * 4)
        print(f'| {name} | {gflop / us * 1e3:.0f} | {mj / gflop:.3f} | {watts:.0f} | {mhz} |', flush=True)
