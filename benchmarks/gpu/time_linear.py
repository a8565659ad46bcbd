"""The products of the model graph, f32 rows with bf16 weights: each kernel is compared with float64, then all are timed in turns, beside cuBLAS in f32
(weights in f32, no TF32) and in bf16 (rows rounded, so less exact). Gated products, silu(x gate^T) * (x up^T), and the parts of a layer of experts follow.

`time_linear.py [FOLDER]`: a folder with another mla_model.cubin and its manifest beside them. A number behind a name is the blocks of a cluster. ROWS and
SHAPES (`16384x7168,...`, outputs x inputs) pick what is timed. Weights rotate, so that each launch reads them from memory. PARTS
(`products,gated,experts`) what of it. `time_linear.py check [ROWS]` compares only, with these numbers of rows (`3,70`).
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
    'mla_linear_row': (1, 8, 1, 1), 'mla_linear_few_1': (1, 8, 1, 1), 'mla_linear_rows_mma': (16, 16, 2, 16), 'mla_linear_mma_16x16': (16, 16, 2, 32),
    'mla_linear_mma_16x32': (16, 32, 2, 32), 'mla_linear_mma_32x32': (32, 32, 9, 128), 'mla_linear_many': (64, 64, 17, 1 << 30),
    'mla_linear_half': (64, 128, 17, 1 << 30),
}
HOPPER_KINDS = {
    'mla_linear_64x64': (64, 64, 1, 512), 'mla_linear_64x128': (64, 128, 1, 1 << 30), 'mla_linear_64x256': (64, 256, 1, 1 << 30),
    'mla_linear_128x256': (128, 256, 65, 1 << 30),
}
# Of two weights: half of a tile's columns are of each.
GATED_KINDS = {
    'mla_linear_row': (1, 8, 1, 1), 'mla_linear_rows_mma': (16, 8, 2, 16), 'mla_gated_64x128': (64, 64, 1, 1 << 30),
    'mla_gated_64x256': (64, 128, 1, 1 << 30), 'mla_gated_128x256': (128, 128, 65, 1 << 30),
}
CLUSTERS = (1, 2, 4, 8)
MOST_APART = 2e-6  # of the sum of magnitudes


class LinearParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'weight', 'out')] + [
        (name, C.c_int64) for name in ('n', 'o', 'i', 'x_stride', 'x_head_stride', 'out_stride', 'out_head_stride')] + [
        (name, C.c_int32) for name in ('heads', 'weight_dtype', 'vector', 'add')] + [(name, C.c_void_p) for name in ('weight_map', 'up_map')]


class LinearRowsParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'weight', 'up', 'out', 'other_weight', 'other_up', 'other_out')] + [
        (name, C.c_int64) for name in ('n', 'i', 'o', 'other_o')] + [
        (name, C.c_int32) for name in ('weight_dtype', 'other_dtype', 'vector', 'blocks', 'add', 'reserved')]


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
    """One product; `up`: gated by it; `add`: added to ones; `gap`: columns between heads, of x and of the result."""

    def __init__(self, module, symbol, x, weight, heads=1, cluster=1, up=None, add=False, gap=0):
        rows, outputs, _, _ = {**GATED_KINDS, **HOPPER_KINDS, **KINDS}[symbol]
        n, (all_outputs, i) = x.shape[0], weight.shape
        self.outputs = o = all_outputs // heads
        if gap:
            x = torch.nn.functional.pad(x.view(n, heads, i), (0, gap), value=float('nan')).reshape(n, -1).contiguous()
        self.what, self.keep, self.cluster = (symbol, module), (x, weight, up), cluster
        self.whole = torch.full((n, heads, o + gap), 1. if add else float('nan'), device='cuda')
        self.out = self.whole[:, :, :o].reshape(n, all_outputs) if gap else self.whole.view(n, all_outputs)
        mapped = '64x' in symbol or '128x' in symbol
        self.params = LinearParams(
            x.data_ptr(), weight.data_ptr(), self.whole.data_ptr(), n, o, i, heads * (i + gap), i + gap, heads * (o + gap), o + gap, heads, 0, int(i % 8 == 0 and gap % 4 == 0), int(add), map_of(weight) if mapped else None,
            map_of(up) if mapped and up is not None else None)
        columns, tiles = -(-o // outputs), -(-n // rows)
        self.grid = (tiles * cluster, columns, heads) if rows >= 64 else (columns, tiles, heads)
        if 'row' in symbol:
            columns = -(-o // (8 if n == 1 or up is not None else 16))
            self.params = LinearRowsParams(x.data_ptr(), weight.data_ptr(), up.data_ptr() if up is not None else None, self.whole.data_ptr(), None, None, None,
                                           n, i, o, 0, 0, 0, int(i % 8 == 0), columns, int(add), 0)
            self.grid = (columns, tiles, 1)

    def __call__(self):
        launch(*self.what, self.grid, [self.params], cluster=self.cluster)

    def result(self):
        self()
        torch.cuda.synchronize()
        n, heads = self.whole.shape[:2]
        return self.whole[:, :, :self.outputs].reshape(n, -1).clone()


class ExpertParams(C.Structure):
    _fields_ = [(name, C.c_void_p) for name in ('x', 'out', 'ids', 'weights', 'experts', 'gate', 'up', 'down', 'order', 'place', 'tiles')] + [
        (name, C.c_int64) for name in ('n', 'hidden', 'inner')] + [
        (name, C.c_int32) for name in ('choices', 'count', 'stage', 'vector', 'most_tiles', 'reserved')]


class Experts:
    """A layer's pairs, sorted by expert, and launches of the products that they go through."""

    def __init__(self, n, hidden, inner, count, choices):
        generator = torch.Generator(device='cuda').manual_seed(3)
        ids = torch.rand(n, count, device='cuda', generator=generator).topk(choices).indices.int()
        self.matrices = [torch.empty(count, inner * hidden, device='cuda', dtype=torch.bfloat16).normal_(generator=generator) for _ in range(3)]
        step = inner * hidden * 2
        rows = (inner, inner, hidden)
        table = torch.tensor([[*(m.data_ptr() + e * step for m in self.matrices), 0, 0, *(map_of(m[e].view(r, -1)) for m, r in zip(self.matrices, rows))]
                              for e in range(count)], device='cuda')
        pairs = n * choices
        floats = lambda *shape: torch.empty(shape, device='cuda').normal_(generator=generator)  # noqa: E731
        self.tiles, self.rows = min(pairs, pairs // 64 + count), rows
        whole = [torch.zeros(size, dtype=torch.int32, device='cuda') for size in (pairs, pairs, 4 * self.tiles)]
        self.x, self.gate, self.up, self.down = floats(n, hidden), floats(pairs, inner), floats(pairs, inner), floats(pairs, hidden)
        out, weights = floats(n, hidden), floats(n, choices)
        self.keep = (ids, table, whole, out, weights)
        self.params = [ExpertParams(*(t.data_ptr() for t in (self.x, out, ids, weights, table, self.gate, self.up, self.down, *whole)), n, hidden, inner,
                                    choices, count, stage, 1, self.tiles, 0) for stage in range(3)]
        self.launch('mla_expert_sort', MODULE, 0, (1, 1, 1))

    def launch(self, symbol, module, stage, grid):
        launch(symbol, module, grid, [self.params[stage]])

    def product(self, symbol, stage):
        outputs = 128 if symbol.endswith(('half', '128')) else 256 if symbol.endswith('256') else 64
        if 'gated' in symbol:
            outputs //= 2
        module = HOPPER if '64x' in symbol else MODULE
        return lambda: self.launch(symbol, module, stage, (self.tiles, -(-self.rows[stage] // outputs), 1))


def gated_apart(found, x, weight, up):
    gate, other = (x.double() @ w.double().T for w in (weight, up))
    sizes = [x.double().abs() @ w.double().abs().T for w in (weight, up)]
    activated = torch.nn.functional.silu(gate)
    size = 1.1 * sizes[0] * other.abs() + sizes[1] * activated.abs()
    return float(((found.double() - activated * other).abs() / size).max())


def apart(found, x, weight, heads=1, added=0):
    n, (outputs, i) = x.shape[0], weight.shape
    rows = x.view(n, heads, i).double()
    matrices = weight.view(heads, outputs // heads, i).double()
    right = torch.einsum('nhi,hoi->nho', rows, matrices).reshape(n, outputs)
    size = torch.einsum('nhi,hoi->nho', rows.abs(), matrices.abs()).reshape(n, outputs)
    return float(((found.double() - right).abs() / (size + added)).max())


def gated_for(n, o, i):
    """Symbols and blocks of a cluster."""
    for symbol, (rows, outputs, least, most) in GATED_KINDS.items():
        tiles = -(-n // rows) * -(-o // outputs)
        for cluster in CLUSTERS if rows >= 64 else (1,):
            if (rows < 64 or i % 8 == 0) and (i % 32 == 0 or 'mma' not in symbol) and least <= n <= most and (cluster == 1 or tiles * cluster <= 280):
                yield symbol, cluster


def kinds_for(n, o, i, modules, heads=1):
    """Module, symbol and blocks of a cluster."""
    for module in modules:
        for symbol, (_, _, least, most) in KINDS.items():
            if (symbol, module) in KERNELS and least <= n <= most and (i % 32 == 0 or 'mma' not in symbol) and (heads == 1 or 'row' not in symbol):
                yield module, symbol, 1
    for symbol, (rows, outputs, least, most) in HOPPER_KINDS.items():
        tiles = -(-n // rows) * -(-o // outputs) * heads
        for cluster in CLUSTERS:
            if i % 8 == 0 and least <= n <= most and (cluster == 1 or tiles * cluster <= 280):
                yield HOPPER, symbol, cluster


def check(modules, rows=(1, 2, 7, 16, 17, 33, 64, 65, 130, 300)):
    cases = [(n, heads, o, i) for n in rows for heads, o, i in ((1, 140, 96), (3, 64, 512), (1, 1000, 2048), (2, 129, 100), (1, 7, 33), (2, 257, 72))]
    worst = count = 0
    for n, heads, o, i in cases:
        x, weight = torch.randn(n, heads * i, device='cuda') * 3, torch.randn(heads * o, i, device='cuda').bfloat16()
        for module, symbol, cluster in kinds_for(n, o, i, modules, heads):
            call = Linear(module, symbol, x, weight, heads, cluster)
            first = call.result()
            others = Linear(module, symbol, x, weight, heads, cluster, add=True, gap=0 if 'row' in symbol else 4).result()
            found = max(apart(first, x, weight, heads), apart(others.double() - 1, x, weight, heads, 1))
            worst, count = max(worst, found), count + 1
            if not found < MOST_APART:
                sys.exit(f'{symbol} by {cluster}, {n} x {heads} x {o} x {i}: {found:.1e} apart')
            if not torch.equal(call.result(), first):
                sys.exit(f'{symbol} by {cluster}, {n} x {heads} x {o} x {i}: other bits the next time')
        if heads > 1:
            continue
        x, up = x / 3, torch.randn(o, i, device='cuda').bfloat16()
        for symbol, cluster in gated_for(n, o, i):
            module = HOPPER if 'gated' in symbol else modules[-1]
            found = gated_apart(Linear(module, symbol, x, weight, 1, cluster, up=up).result(), x, weight, up)
            worst, count = max(worst, found), count + 1
            if not found < MOST_APART:
                sys.exit(f'{symbol} by {cluster}, {n} x {o} x {i}: {found:.1e} apart')
    print(f'{count} products right, {worst:.1e} apart at most', flush=True)


def check_experts():
    """Gated tiles beside those of gate and up by themselves."""
    for n, hidden, inner, count, choices in ((3, 128, 96, 8, 2), (70, 512, 200, 8, 3), (40, 2048, 1408, 64, 6)):
        layer = Experts(n, hidden, inner, count, choices)
        layer.x /= hidden ** 0.5
        layer.product('mla_expert_tiles_64x256', 0)()
        layer.product('mla_expert_tiles_64x128', 1)()
        expected = torch.nn.functional.silu(layer.gate) * layer.up
        for symbol in ('mla_expert_gated_64x128', 'mla_expert_gated_64x256'):
            layer.gate.fill_(float('nan'))
            layer.product(symbol, 0)()
            found = difference(layer.gate, expected)
            if not found < 1e-5:
                sys.exit(f'{symbol}, {n} x {hidden} x {inner}: {found:.1e} apart')
    print('gated experts as gate and up by themselves', flush=True)


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


def time_gated():
    for o, i in ((10944, 2048), (2816, 2048), (2048, 7168)):
        sets = max(1, -(-(120 << 20) // (o * i * 4)))
        weights = [[torch.randn(o, i, device='cuda').bfloat16() for _ in range(2)] for _ in range(sets)]
        for n in (int(word) for word in os.environ.get('ROWS', '1,4,16,64,512').split(',')):
            x, launches = torch.randn(n, i, device='cuda'), max(sets, 4)
            contenders = {}
            for symbol, cluster in gated_for(n, o, i):
                calls = [Linear(HOPPER if 'gated' in symbol else MODULE, symbol, x, gate, 1, cluster, up=up) for gate, up in weights]
                contenders[symbol.split('_', 2)[-1] + (f'/{cluster}' if cluster > 1 else '')] = [calls[k % sets] for k in range(launches)]
            times = sorted(zip(in_turns(list(contenders.values())), contenders))
            print(f'gated {o}x{i}, {n} rows: ' + ', '.join(f'{name} {us:.1f}' for us, name in times[:6]), flush=True)
            del contenders
        del weights
        _maps.clear()
        torch.cuda.empty_cache()


def time_experts():
    kinds = [(0, f'mla_expert_{kind}') for kind in ('tiles', 'tiles_half', 'tiles_64x128', 'tiles_64x256', 'gated_64x128', 'gated_64x256')] + [
        (2, f'mla_expert_{kind}') for kind in ('tiles', 'tiles_half', 'tiles_64x128', 'tiles_64x256')]
    for n, hidden, inner, count, choices in ((8, 2048, 1408, 64, 6), (16, 2048, 1408, 64, 6), (64, 2048, 1408, 64, 6), (512, 2048, 1408, 64, 6),
                                             (2048, 2048, 1408, 64, 6), (512, 7168, 2048, 64, 8)):
        layer = Experts(n, hidden, inner, count, choices)
        rest = {
            'sort': lambda: layer.launch('mla_expert_sort', MODULE, 0, (1, 1, 1)),
            'up (few)': lambda: layer.launch('mla_expert_up', MODULE, 0, (-(-inner // 16), n * choices, 1)),
            'down (few)': lambda: layer.launch('mla_expert_down', MODULE, 0, (-(-hidden // 8), n, 1)),
            'sum': lambda: layer.launch('mla_expert_sum', MODULE, 0, (n, -(-hidden // 256), 1)),
        }
        names = [f'{("gate", "", "down")[stage]} {symbol[11:]}' for stage, symbol in kinds] + list(rest)
        calls = [[layer.product(symbol, stage)] * 4 for stage, symbol in kinds] + [[call] * 4 for call in rest.values()]
        if n > 64:
            names, calls = [list(x) for x in zip(*((name, call) for name, call in zip(names, calls) if '(few)' not in name))]
        print(f'experts {count} x {inner} x {hidden}, {n} rows of {choices}: ' + ', '.join(
            f'{name} {us:.1f}' for name, us in zip(names, in_turns(calls))), flush=True)
        del layer, calls, rest
        _maps.clear()
        torch.cuda.empty_cache()


if __name__ == '__main__':
    torch.backends.cuda.matmul.allow_tf32 = False
    if sys.argv[1:2] == ['check']:
        check([MODULE], *([tuple(int(word) for word in sys.argv[2].split(','))] if sys.argv[2:] else []))
        check_experts()
    else:
        compared = [os.path.join(add(folder), MODULE) for folder in sys.argv[1:]] + [MODULE]
        check(compared)
        parts = os.environ.get('PARTS', 'products,gated,experts').split(',')
        if 'products' in parts:
            time_products(compared)
        if 'gated' in parts:
            time_gated()
        if 'experts' in parts:
            time_experts()
