"""Our decode, FlashMLA and FlashAttention-3 on the same tensors in one run: graph replays, contender after contender, in turns.

PEERS names the folder that peers/build.sh filled. Before a shape is timed the outputs are compared with each other.
FlashMLA's scheduler runs beforehand, as its users run it; FA3's and ours run inside every call. Where there is an nvcc, a kernel that reads
the same pages and does nothing else goes with them. SHAPES picks shapes as in compare.py.
"""
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'peers'))

from compare import shapes_of
from driver import Decode
from peers import FlashAttention3, FlashMla
from probes import reading
from time_decode import SHAPES, ceilings, inputs_for, label
from turns import difference, in_turns

PEERS = os.environ['PEERS']
SCALE = 576**-0.5


def without_spare(kv, table, seq_lens):
    """The table without entries past the sequences' ends, which the peers may read."""
    return table[:, : -(-int(seq_lens.max()) // 64)].clamp(max=kv.shape[0] - 1).contiguous()


def contenders_for(shape):
    b, s_q, h_q = shape[:3]
    inputs, lengths, launches = inputs_for(shape)
    tokens, sets = sum(lengths), len(inputs)
    ours, mla, fa3, reads = [], [], [], []
    for q, kv, table, seq_lens in inputs:
        ours.append(Decode(q, kv, table, seq_lens, s_q, SCALE, expects=True))
        plain = without_spare(kv, table, seq_lens)
        shaped = q.view(b, s_q, h_q, 576)
        mla.append(FlashMla(PEERS, shaped, kv, plain, seq_lens, SCALE))
        fa3.append(FlashAttention3(PEERS, shaped, kv, plain, seq_lens, SCALE))
        reads.append(reading(kv, plain, seq_lens))
    ours[0]()
    mla[0].launch()
    fa3[0].launch()
    torch.cuda.synchronize()
    apart = [difference(ours[0].out, peer.out) for peer in (mla[0], fa3[0])]
    calls = [
        [ours[i % sets] for i in range(launches)],
        [mla[i % sets].launch for i in range(launches)],
        [fa3[i % sets].launch for i in range(launches)],
    ]
    if all(reads):
        calls.append([reads[i % sets] for i in range(launches)])
    flop = 2 * h_q * s_q * tokens * 1088
    size = 2 * (tokens * 576 + b * s_q * h_q * 1088)
    return calls, apart, flop, size


if __name__ == '__main__':
    copy, read, flops = ceilings()
    print(f'{torch.cuda.get_device_name()}: copy {copy:.0f} GB/s, read {read:.0f} GB/s, bf16 8192^3 {flops:.0f} TFLOP/s')
    print('| b x s_q x h_q, length | us | FlashMLA us | FA3 us | faster peer / ours | TFLOP/s | GB/s | floor us | reading us | out against peers |')
    print('|---|---|---|---|---|---|---|---|---|---|', flush=True)
    wanted = os.environ.get('SHAPES')
    for shape in SHAPES if not wanted else shapes_of(wanted):
        calls, apart, flop, size = contenders_for(shape)
        us, mla, fa3, *alone = in_turns(calls)
        floor = max(size / read / 1e3, flop / flops / 1e6)
        print(
            f'| {label(shape)} | {us:.1f} | {mla:.1f} | {fa3:.1f} | {min(mla, fa3) / us:.2f} | {flop / us / 1e6:.0f} | '
            f'{size / us / 1e3:.0f} | {floor:.1f} | {alone[0] if alone else float("nan"):.1f} | {apart[0]:.1e} {apart[1]:.1e} |',
            flush=True,
        )
        del calls
        torch.cuda.empty_cache()
