"""Times decode (kernel + combine, the schedule included) by graph replay over rotating buffers, beside a copy and a matrix product."""
import json
import os
import sys

import torch

import oracle
from driver import Decode
from turns import in_turns

# b, s_q, h_q, lengths, upstream FlashMLA us, FlashAttention-3 us (docs: measured elsewhere on the same kind of card)
RAGGED4 = [4641, 45118, 1730, 1696]


def ragged(mean, b=128):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(b, generator=g) * mean / 2 + mean).clamp(min=64).int().tolist()


SHAPES = [
    (128, 1, 16, 1024, 56.7, 67.2), (128, 4, 16, 1024, 60.8, 74.7), (128, 16, 16, 1024, 135.1, 166.0),
    (128, 1, 16, 4096, 208.3, 217.1), (128, 1, 64, 4096, 213.4, 224.4), (128, 1, 128, 4096, 256.8, 287.2),
    (128, 2, 128, 4096, 529.9, 562.6), (128, 1, 128, 16384, 1026.5, 1133.7), (128, 1, 128, 1024, 78.9, 97.2),
    (32, 1, 16, 4096, 58.1, 65.8), (32, 1, 128, 4096, 76.4, 89.2), (8, 1, 16, 4096, 24.3, 23.9), (8, 1, 128, 4096, 34.4, 38.5),
    (1, 1, 16, 4096, 23.2, 17.1), (1, 1, 128, 4096, 19.8, 21.1), (4, 1, 16, 32768, 64.7, 68.2), (1, 1, 16, 32768, 44.8, 28.9),
    (1, 1, 128, 32768, 40.6, 45.1), (1, 1, 128, 131072, 82.4, 91.4), (4, 4, 16, RAGGED4, 54.7, 51.1), (4, 1, 16, RAGGED4, 49.5, 43.5),
    (4, 1, 128, RAGGED4, 52.1, 54.9), (128, 1, 128, 'ragged', 294.1, 288.0), (128, 1, 16, 'ragged', 225.3, 241.7),
    (128, 1, 32, 4096, 209.9, 218.4), (32, 1, 32, 4096, 66.9, 71.3), (8, 1, 32, 4096, 28.4, 30.4), (1, 1, 32, 4096, 24.8, 19.4),
    (128, 1, 128, 8192, 524.5, 502.9), (128, 1, 128, 32768, 1993.2, 2086.8), (128, 2, 128, 8192, 905.6, 983.0),
    (128, 2, 128, 16384, 1848.6, 2020.2), (128, 2, 128, 32768, 3632.0, 3973.6), (128, 1, 32, 1024, 60.7, 69.7),
    (128, 2, 16, 4096, 210.4, 219.9), (64, 1, 32, 4096, 121.2, 123.9), (32, 1, 64, 4096, 71.7, 78.1), (4, 1, 32, 32768, 71.1, 73.7),
]


def replay_us(calls, replays=7):
    return in_turns([calls], replays)[0]


def ceilings():
    x = torch.empty(1 << 31, dtype=torch.uint8, device='cuda').random_()
    y = torch.empty_like(x)
    copy = 2 * x.numel() / replay_us([lambda: y.copy_(x)]) / 1e3
    read = x.numel() / replay_us([lambda: torch.amax(x.view(torch.int32))]) / 1e3
    del x, y
    a, b = torch.randn(8192, 8192, device='cuda').bfloat16(), torch.randn(8192, 8192, device='cuda').bfloat16()
    flops = 2 * 8192 ** 3 / replay_us([lambda: a @ b] * 4) / 1e6
    return copy, read, flops


def inputs_for(shape):
    """Sets of inputs that together don't fit into L2, their lengths, and how many launches a graph of them takes."""
    b, s_q, h_q, lengths = shape[:4]
    if lengths == 'ragged':
        lengths = ragged(4116 if h_q == 128 else 4243, b)
    lengths = lengths if isinstance(lengths, list) else [lengths] * b
    tokens = sum(lengths)
    sets = max(1, min(16, -(-(300 << 20) // (tokens * 1152))))
    inputs = [oracle.make_inputs(lengths, s_q, h_q, 64, seed=i, poison=False) for i in range(sets)]
    return inputs, lengths, max(sets, 10 if tokens < 1 << 20 else 4)


def measure(shape, **tune):
    b, s_q, h_q = shape[:3]
    inputs, lengths, launches = inputs_for(shape)
    tokens, sets = sum(lengths), len(inputs)
    calls = [Decode(*x, s_q, 576 ** -0.5, expects=True, **tune) for x in inputs]
    us = replay_us([calls[i % sets] for i in range(launches)])
    hot = replay_us([calls[0]] * launches) if sets > 1 else us
    flop = 2 * h_q * s_q * tokens * 1088
    size = 2 * (tokens * 576 + b * s_q * h_q * 1088)
    return us, hot, flop / us / 1e6, size / us / 1e3, size, flop


def label(shape):
    lengths = str(shape[3]).replace(' ', '')
    return f'{shape[0]}x{shape[1]}x{shape[2]} {lengths}'


if __name__ == '__main__':
    copy, read, flops = ceilings()
    print(f'{torch.cuda.get_device_name()}: copy {copy:.0f} GB/s, read {read:.0f} GB/s, bf16 8192^3 {flops:.0f} TFLOP/s', flush=True)
    tunes = json.loads(os.environ.get('TUNES', '[{}]'))
    wanted = os.environ.get('SHAPES')
    shapes = SHAPES if not wanted else [SHAPES[int(i)] for i in wanted.split(',')]
    print('| b x s_q x h_q, length | us | hot us | TFLOP/s | GB/s | floor us | share | FlashMLA us | FA3 us | ratio |', flush=True)
    print('|---|---|---|---|---|---|---|---|---|---|')
    for shape in shapes:
        for tune in tunes:
            us, hot, tf, gb, size, flop = measure(shape, **tune)
            floor = max(size / 3.09e6, flop / 728e6)
            extra = f' {tune}' if tune else ''
            print(f'| {label(shape)}{extra} | {us:.1f} | {hot:.1f} | {tf:.0f} | {gb:.0f} | {floor:.1f} | {floor / us:.2f} | {shape[4]} | {shape[5]} | '
                  f'{min(shape[4:6]) / us:.2f} |', flush=True)
            torch.cuda.empty_cache()
