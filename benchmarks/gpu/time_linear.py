"""The products of the model graph, f32 rows with bf16 weights: each kernel is compared with float64, then all are timed in turns, beside cuBLAS in f32
(weights in f32, no TF32) and in bf16 (rows rounded, so less exact).

`time_linear.py [FOLDER]`: a folder with another mla_model.cubin and its manifest, whose kernels come first. ROWS and SHAPES (`16384x7168,...`, outputs x
inputs) pick what is timed. Weights rotate, so that each launch reads them from memory.
"""
import ctypes as C
import os
import sys

import torch

from compare import add
from driver import CUBIN, KERNELS, launch
from turns import in_turns

MODULE = 'mla_model.cubin'
# Rows and outputs that a block takes, and the rows from which on and up to which a kernel is tried.
KINDS = {
    'mla_linear_few_1': (1, 8, 1, 1), 'mla_linear_mma_16': (16, 32, 2, 32), 'mla_linear_mma_16x64': (16, 64, 2, 32), 'mla_linear_mma_32': (32, 32, 9, 128),
    'mla_linear_mma_32x64': (32, 64, 9, 128), 'mla_linear_mma_64': (64, 32, 33, 128), 'mla_linear_many': (64, 64, 17, 1 << 30),
    'mla_linear_half': (64, 128, 17, 1 << 30), 'mla_linear_wide': (128, 128, 65, 1 << 30),
}
MOST_APART = 2e-6  # of the sum of magnitudes


class LinearParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'weight', 'out')] + [(name, C.c_int64) for name in ('n', 'o', 'i', 'x_stride', 'out_stride')] + [
        (name, C.c_int32) for name in ('heads', 'weight_dtype', 'vector', 'reserved')]


class Linear:
    def __init__(self, module, symbol, x, weight, heads=1):
        rows, outputs, _, _ = KINDS[symbol]
        (n, width), (all_outputs, i) = x.shape, weight.shape
        o = all_outputs // heads
        self.what, self.keep = (symbol, module), (x, weight)
        self.out = torch.full((n, all_outputs), float('nan'), device='cuda')
        self.params = LinearParams(x.data_ptr(), weight.data_ptr(), self.out.data_ptr(), n, o, i, width, all_outputs, heads, 0, int(i % 8 == 0), 0)
        many = rows >= 64 and symbol != 'mla_linear_mma_64'
        columns, tiles = -(-o // outputs), -(-n // rows)
        self.grid = (tiles, columns, heads) if many else (columns, tiles, heads)

    def __call__(self):
        launch(*self.what, self.grid, [self.params])


class ExpertParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'out', 'ids', 'weights', 'experts', 'gate', 'up', 'down', 'order', 'place', 'starts', 'tiles')] + [
        (name, C.c_int64) for name in ('n', 'hidden', 'inner')] + [(name, C.c_int32) for name in ('choices', 'count', 'stage', 'vector')]


class Experts:
    """The two products of experts that the rows have been sorted for: gate, and down."""

    def __init__(self, module, symbol, n, hidden, inner, count, choices):
        self.what, generator = (symbol, module), torch.Generator(device='cuda').manual_seed(3)
        ids = torch.rand(n, count, device='cuda', generator=generator).topk(choices).indices.int()
        self.matrices = [torch.empty(count, inner * hidden, device='cuda', dtype=torch.bfloat16).normal_(generator=generator) for _ in range(2)]
        bases = [m.data_ptr() for m in self.matrices]
        step = inner * hidden * 2
        table = torch.tensor([[bases[0] + e * step, bases[0] + e * step, bases[1] + e * step, 0, 0] for e in range(count)], device='cuda')
        pairs = n * choices
        floats = lambda *shape: torch.empty(shape, device='cuda').normal_(generator=generator)  # noqa: E731
        whole = [torch.zeros(size, dtype=torch.int32, device='cuda') for size in (pairs, pairs, count + 1, count + 1)]
        self.x, self.gate, self.down = floats(n, hidden), floats(pairs, inner), floats(pairs, hidden)
        out, up, weights = floats(n, hidden), floats(pairs, inner), floats(n, choices)
        self.keep = (ids, table, whole, out, up, weights)
        params = lambda stage: ExpertParams(  # noqa: E731
            *(t.data_ptr() for t in (self.x, out, ids, weights, table, self.gate, up, self.down, *whole)), n, hidden, inner, choices, count, stage, 1)
        self.stages = [params(0), params(2)]
        launch('mla_expert_sort', module, (1, 1, 1), [self.stages[0]])
        outputs = 128 if symbol.endswith('half') else 64
        tiles = min(pairs, pairs // 64 + count)
        self.grids = [(tiles, -(-columns // outputs), 1) for columns in (inner, hidden)]

    def __call__(self):
        for grid, params in zip(self.grids, self.stages):
            launch(*self.what, grid, [params])


def apart(found, x, weight, heads=1):
    n, (outputs, i) = x.shape[0], weight.shape
    rows = x.view(n, heads, i).double()
    matrices = weight.view(heads, outputs // heads, i).double()
    right = torch.einsum('nhi,hoi->nho', rows, matrices).reshape(n, outputs)
    size = torch.einsum('nhi,hoi->nho', rows.abs(), matrices.abs()).reshape(n, outputs)
    return float(((found.double() - right).abs() / size).max())


def kinds_for(n, modules, aligned=True):
    for module in modules:
        for symbol, (_, _, least, most) in KINDS.items():
            if (symbol, module) in KERNELS and least <= n <= most and (aligned or 'mma' not in symbol):
                yield module, symbol


def check(modules):
    cases = [(n, heads, o, i) for n in (2, 16, 17, 33, 64, 65, 130, 300) for heads, o, i in ((1, 140, 96), (3, 64, 512), (1, 1000, 2048), (2, 129, 100), (1, 7, 33))]
    worst = count = 0
    for n, heads, o, i in cases:
        x, weight = torch.randn(n, heads * i, device='cuda') * 3, torch.randn(heads * o, i, device='cuda').bfloat16()
        tiles = {}
        for module, symbol in kinds_for(n, modules, i % 32 == 0):
            call = Linear(module, symbol, x, weight, heads)
            call()
            found = apart(call.out, x, weight, heads)
            worst, count = max(worst, found), count + 1
            if not found < MOST_APART:
                sys.exit(f'{symbol} {n} x {heads} x {o} x {i}: {found:.1e} apart')
            if 'mma' not in symbol:
                tiles[symbol] = call.out
        for symbol, out in tiles.items():
            if not torch.equal(out, next(iter(tiles.values()))):
                sys.exit(f'{symbol} {n} x {heads} x {o} x {i}: other bits than {next(iter(tiles))}')
    print(f'{count} products right, {worst:.1e} apart at most', flush=True)


if __name__ == '__main__':
    modules = [os.path.join(add(folder), MODULE) for folder in sys.argv[1:] + [CUBIN]]
    torch.backends.cuda.matmul.allow_tf32 = False
    check(modules)
    for shape in os.environ.get('SHAPES', '16384x7168,7168x2048,2048x2048,576x7168').split(','):
        o, i = (int(word) for word in shape.split('x'))
        sets = max(1, -(-(120 << 20) // (o * i * 2)))
        weights = [torch.randn(o, i, device='cuda').bfloat16() for _ in range(sets)]
        for n in (int(word) for word in os.environ.get('ROWS', '4,16,32,64,128,512,2048').split(',')):
            x = torch.randn(n, i, device='cuda')
            launches = max(sets, 4)
            contenders = {}
            for module, symbol in kinds_for(n, modules):
                calls = [Linear(module, symbol, x, weight) for weight in weights]
                contenders[f'{"new" if module == modules[-1] else "old"} {symbol[11:]}'] = [calls[k % sets] for k in range(launches)]
            wide, halves = [weight.float() for weight in weights], x.bfloat16()
            contenders['cuBLAS f32'] = [lambda w=wide[k % sets]: x @ w.T for k in range(launches)]
            contenders['cuBLAS bf16'] = [lambda w=weights[k % sets]: halves @ w.T for k in range(launches)]
            times = dict(zip(contenders, in_turns(list(contenders.values()))))
            print(f'{o}x{i}, {n} rows: ' + ', '.join(f'{name} {us:.1f}' for name, us in times.items()), flush=True)
            del contenders, wide
        del weights
        torch.cuda.empty_cache()
    for n, hidden, inner, count, choices in ((64, 2048, 1408, 64, 6), (512, 2048, 1408, 64, 6), (2048, 2048, 1408, 64, 6), (512, 7168, 2048, 64, 8)):
        names = [(module, symbol) for module in modules for symbol in ('mla_expert_tiles', 'mla_expert_tiles_half') if (symbol, module) in KERNELS]
        contenders = []
        for module, symbol in names:
            contenders.append([Experts(module, symbol, n, hidden, inner, count, choices)])
            contenders[-1][0]()
        first = contenders[0][0]
        same = all(torch.equal(a, b) for (call,) in contenders for a, b in ((call.gate, first.gate), (call.down, first.down)))
        times = in_turns(contenders)
        print(f'experts {count} x {inner} x {hidden}, {n} rows of {choices}, {"equal" if same else "UNEQUAL"}: ' + ', '.join(
            f'{"new" if module == modules[-1] else "old"} {symbol[4:]} {us:.1f}' for (module, symbol), us in zip(names, times)), flush=True)
        del contenders, first
        torch.cuda.empty_cache()
