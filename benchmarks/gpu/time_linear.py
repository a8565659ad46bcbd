"""The products of the model graph, f32 rows with bf16 weights: each kernel is compared with float64, then all are timed in turns, beside cuBLAS in f32
(weights in f32, no TF32) and in bf16 (rows rounded, so less exact).

`time_linear.py [FOLDER]`: a folder with another mla_model.cubin and its manifest beside them. A number behind a name is the blocks of a cluster. ROWS and
SHAPES (`16384x7168,...`, outputs x inputs) pick what is timed. Weights rotate, so that each launch reads them from memory. `time_linear.py check [ROWS]`
compares only, with these numbers of rows (`3,70`).
"""
import ctypes as C
import os
import sys

import torch

from compare import add
from driver import KERNELS, launch, tensor_map
from turns import difference, in_turns

MODULE, HOPPER = 'mla_model.cubin', 'mla_linear_sm90.cubin'
# Rows and outputs that a block takes, and the rows from which on and up to which a kernel is tried.
KINDS = {
    'mla_linear_few_1': (1, 8, 1, 1), 'mla_linear_mma_16': (16, 32, 2, 32), 'mla_linear_mma_32': (32, 32, 9, 128),
    'mla_linear_many': (64, 64, 17, 1 << 30), 'mla_linear_half': (64, 128, 17, 1 << 30),
}
HOPPER_KINDS = {
    'mla_linear_64x64': (64, 64, 1, 512), 'mla_linear_64x128': (64, 128, 1, 1 << 30), 'mla_linear_64x256': (64, 256, 1, 1 << 30),
    'mla_linear_128x256': (128, 256, 65, 1 << 30),
}
CLUSTERS = (1, 2, 4, 8)
MOST_APART = 2e-6  # of the sum of magnitudes


class LinearParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'weight', 'out')] + [(name, C.c_int64) for name in ('n', 'o', 'i', 'x_stride', 'out_stride')] + [
        (name, C.c_int32) for name in ('heads', 'weight_dtype', 'vector', 'reserved')] + [('weight_map', C.c_void_p)]


_maps = {}


def map_of(weight):
    """Device address of a tensor map of bf16 rows, in boxes of 64 x 64."""
    rows, i = weight.shape
    key = (weight.data_ptr(), rows)
    if key not in _maps:
        host = tensor_map(torch.bfloat16, weight.data_ptr(), (i, rows), (i * 2,), (64, 64))
        data = C.string_at(host.address, 128)
        _maps[key] = (torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda(), weight)
    return _maps[key][0].data_ptr()


class Linear:
    def __init__(self, module, symbol, x, weight, heads=1, cluster=1):
        rows, outputs, _, _ = {**KINDS, **HOPPER_KINDS}[symbol]
        (n, width), (all_outputs, i) = x.shape, weight.shape
        o = all_outputs // heads
        self.what, self.keep, self.cluster = (symbol, module), (x, weight), cluster
        self.out = torch.full((n, all_outputs), float('nan'), device='cuda')
        self.params = LinearParams(x.data_ptr(), weight.data_ptr(), self.out.data_ptr(), n, o, i, width, all_outputs, heads, 0, int(i % 8 == 0), 0,
                                   map_of(weight) if symbol in HOPPER_KINDS else None)
        columns, tiles = -(-o // outputs), -(-n // rows)
        self.grid = (tiles * cluster, columns, heads) if rows >= 64 else (columns, tiles, heads)

    def __call__(self):
        launch(*self.what, self.grid, [self.params], cluster=self.cluster)


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
        maps = [[map_of(m[e].view(rows, -1)) for e in range(count)] for m, rows in zip(self.matrices, (inner, hidden))]
        table = torch.tensor([[bases[0] + e * step, bases[0] + e * step, bases[1] + e * step, 0, 0, maps[0][e], maps[0][e], maps[1][e]] for e in range(count)],
                             device='cuda')
        pairs = n * choices
        floats = lambda *shape: torch.empty(shape, device='cuda').normal_(generator=generator)  # noqa: E731
        whole = [torch.zeros(size, dtype=torch.int32, device='cuda') for size in (pairs, pairs, count + 1, count + 1)]
        self.x, self.gate, self.down = floats(n, hidden), floats(pairs, inner), floats(pairs, hidden)
        out, up, weights = floats(n, hidden), floats(pairs, inner), floats(n, choices)
        self.keep = (ids, table, whole, out, up, weights)
        params = lambda stage: ExpertParams(  # noqa: E731
            *(t.data_ptr() for t in (self.x, out, ids, weights, table, self.gate, up, self.down, *whole)), n, hidden, inner, choices, count, stage, 1)
        self.stages = [params(0), params(2)]
        launch('mla_expert_sort', MODULE, (1, 1, 1), [self.stages[0]])
        outputs = 256 if symbol.endswith('256') else 128 if symbol.endswith(('half', '128')) else 64
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


def kinds_for(n, o, i, modules, heads=1):
    """Module, symbol and blocks of a cluster."""
    for module in modules:
        for symbol, (_, _, least, most) in KINDS.items():
            if (symbol, module) in KERNELS and least <= n <= most and (i % 32 == 0 or 'mma' not in symbol):
                yield module, symbol, 1
    for symbol, (rows, outputs, least, most) in HOPPER_KINDS.items():
        tiles = -(-n // rows) * -(-o // outputs) * heads
        for cluster in CLUSTERS:
            if i % 8 == 0 and least <= n <= most and (cluster == 1 or tiles * cluster <= 280):
                yield HOPPER, symbol, cluster


def check(modules, rows=(2, 16, 17, 33, 64, 65, 130, 300)):
    cases = [(n, heads, o, i) for n in rows for heads, o, i in ((1, 140, 96), (3, 64, 512), (1, 1000, 2048), (2, 129, 100), (1, 7, 33), (2, 257, 72))]
    worst = count = 0
    for n, heads, o, i in cases:
        x, weight = torch.randn(n, heads * i, device='cuda') * 3, torch.randn(heads * o, i, device='cuda').bfloat16()
        for module, symbol, cluster in kinds_for(n, o, i, modules, heads):
            call = Linear(module, symbol, x, weight, heads, cluster)
            call()
            torch.cuda.synchronize()
            found = apart(call.out, x, weight, heads)
            worst, count = max(worst, found), count + 1
            if not found < MOST_APART:
                sys.exit(f'{symbol} by {cluster}, {n} x {heads} x {o} x {i}: {found:.1e} apart')
            again = Linear(module, symbol, x, weight, heads, cluster)
            again()
            if not torch.equal(again.out, call.out):
                sys.exit(f'{symbol} by {cluster}, {n} x {heads} x {o} x {i}: other bits the next time')
    print(f'{count} products right, {worst:.1e} apart at most', flush=True)


def name_of(module, symbol, cluster, modules):
    age = 'old ' if len(modules) > 1 and module == modules[0] else ''
    return age + symbol[11:] + (f'/{cluster}' if cluster > 1 else '')


def time_products(modules):
    for shape in os.environ.get('SHAPES', '16384x7168,7168x2048,2048x2048,576x7168,576x2048,3072x2048').split(','):
        o, i = (int(word) for word in shape.split('x'))
        sets = max(1, -(-(120 << 20) // (o * i * 2)))
        weights = [torch.randn(o, i, device='cuda').bfloat16() for _ in range(sets)]
        for n in (int(word) for word in os.environ.get('ROWS', '1,4,16,64,128,512,2048').split(',')):
            x = torch.randn(n, i, device='cuda')
            launches = max(sets, 4)
            contenders = {}
            for module, symbol, cluster in kinds_for(n, o, i, modules):
                calls = [Linear(module, symbol, x, weight, cluster=cluster) for weight in weights]
                contenders[name_of(module, symbol, cluster, modules)] = [calls[k % sets] for k in range(launches)]
            wide, halves = [weight.float() for weight in weights], x.bfloat16()
            contenders['cuBLAS f32'] = [lambda w=wide[k % sets]: x @ w.T for k in range(launches)]
            contenders['cuBLAS bf16'] = [lambda w=weights[k % sets]: halves @ w.T for k in range(launches)]
            times = sorted(zip(in_turns(list(contenders.values())), contenders))
            print(f'{o}x{i}, {n} rows: ' + ', '.join(f'{name} {us:.1f}' for us, name in times), flush=True)
            del contenders, wide
        del weights
        _maps.clear()
        torch.cuda.empty_cache()


def time_experts():
    kinds = [(MODULE, 'mla_expert_tiles'), (MODULE, 'mla_expert_tiles_half'), (HOPPER, 'mla_expert_tiles_64x128'), (HOPPER, 'mla_expert_tiles_64x256')]
    for n, hidden, inner, count, choices in ((64, 2048, 1408, 64, 6), (512, 2048, 1408, 64, 6), (2048, 2048, 1408, 64, 6), (512, 7168, 2048, 64, 8)):
        contenders = []
        for module, symbol in kinds:
            contenders.append([Experts(module, symbol, n, hidden, inner, count, choices)])
            contenders[-1][0]()
        first = contenders[0][0]
        apart_by = max(difference(a, b) for (call,) in contenders for a, b in ((call.gate, first.gate), (call.down, first.down)))
        times = in_turns(contenders)
        print(f'experts {count} x {inner} x {hidden}, {n} rows of {choices}, {apart_by:.1e} apart: ' + ', '.join(
            f'{symbol[4:]} {us:.1f}' for (_, symbol), us in zip(kinds, times)), flush=True)
        del contenders, first
        _maps.clear()
        torch.cuda.empty_cache()


if __name__ == '__main__':
    torch.backends.cuda.matmul.allow_tf32 = False
    if sys.argv[1:2] == ['check']:
        check([MODULE], *([tuple(int(word) for word in sys.argv[2].split(','))] if sys.argv[2:] else []))
    else:
        compared = [os.path.join(add(folder), MODULE) for folder in sys.argv[1:]] + [MODULE]
        check(compared)
        time_products(compared)
        time_experts()
