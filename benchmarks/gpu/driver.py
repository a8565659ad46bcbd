"""The committed kernels through the CUDA driver API, inside PyTorch's context. Needs a GPU machine with PyTorch."""
import ctypes as C
import json
import os

import torch

CUBIN = os.path.join(os.path.dirname(__file__), '..', '..', os.environ.get('CUBINS', 'packages/cuda/cubin'))
cuda = C.CDLL('libcuda.so.1')


def check(status, what):
    if status != 0:
        name = C.c_char_p()
        cuda.cuGetErrorName(status, C.byref(name))
        raise RuntimeError(f'{what}: {name.value.decode() if name.value else status}')


class DecodeParams(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in
                ('q', 'kv', 'block_table', 'seq_lens', 'query_start', 'out', 'lse', 'partial_out', 'partial_lse')] + [
        (n, C.c_int64) for n in ('block_table_stride', 'kv_page_stride', 'kv_row_stride')] + [('softmax_scale', C.c_float)] + [
        (n, C.c_int32) for n in ('batch', 's_q', 'h_q', 'page_size', 'out_dtype', 'workers', 'tiles_per_group', 'min_blocks',
                                 'tile_overhead', 'tile_rows', 'split_by_tile')] + [
        (n, C.c_void_p) for n in ('splits', 'parts_ready')] + [
        (n, C.c_int32) for n in ('num_blocks', 'group_workers', 'groups', 'first_lead', 'block_ps', 'reserved')]


class AppendParams(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ('latent', 'norm_weight', 'rotary_table', 'positions', 'slots', 'cache')] + [
        (n, C.c_int64) for n in ('cache_page_stride', 'cache_row_stride')] + [('norm_eps', C.c_float)] + [
        (n, C.c_int32) for n in ('n', 'page_size', 'latent_dtype', 'interleaved', 'format')]


class CastParams(C.Structure):
    _fields_ = [('source', C.c_void_p), ('target', C.c_void_p), ('n', C.c_int64), ('target_dtype', C.c_int32), ('reserved', C.c_int32)]


class Attribute(C.Structure):
    _fields_ = [('id', C.c_uint32), ('pad', C.c_uint32), ('value', C.c_uint32 * 16)]


class LaunchConfig(C.Structure):
    _fields_ = [('grid', C.c_uint32 * 3), ('block', C.c_uint32 * 3), ('shared', C.c_uint32), ('stream', C.c_void_p),
                ('attrs', C.POINTER(Attribute)), ('count', C.c_uint32)]


class TensorMap:
    def __init__(self):
        self.raw = C.create_string_buffer(128 + 64)
        self.address = (C.addressof(self.raw) + 63) & ~63


def tensor_map(dtype, address, dims, strides, box, promotion=3):
    m = TensorMap()
    n = len(dims)
    u64, u32 = C.c_uint64 * n, C.c_uint32 * n
    code = 9 if dtype == torch.bfloat16 else 6
    check(cuda.cuTensorMapEncodeTiled(C.c_void_p(m.address), code, n, C.c_void_p(address), u64(*dims),
                                      (C.c_uint64 * max(1, n - 1))(*strides), u32(*box), u32(*([1] * n)), 0, 3, promotion, 0),
          f'cuTensorMapEncodeTiled {dims} {strides} {box}')
    return m


_modules, _functions = {}, {}


def function(symbol, module):
    key = (symbol, module)
    if key not in _functions:
        torch.cuda.current_stream()
        torch.zeros(1, device='cuda')
        if module not in _modules:
            handle = C.c_void_p()
            data = open(os.path.join(CUBIN, module), 'rb').read() + b'\0'
            check(cuda.cuModuleLoadData(C.byref(handle), data), f'cuModuleLoadData {module}')
            _modules[module] = handle
        f = C.c_void_p()
        check(cuda.cuModuleGetFunction(C.byref(f), _modules[module], symbol.encode()), symbol)
        shared = KERNELS[key]['sharedBytes']
        if shared > 48 * 1024:
            check(cuda.cuFuncSetAttribute(f, 8, shared), 'cuFuncSetAttribute')
        _functions[key] = f
    return _functions[key]


def load_manifest(folder=CUBIN):
    manifest = json.load(open(os.path.join(folder, 'manifest.json')))
    return {(k['symbol'], k['module']): k for k in manifest['kernels']}


KERNELS = load_manifest()


def launch(symbol, module, grid, args, programmatic=False, cluster=None):
    """args: ctypes structures and TensorMaps, in order."""
    f = function(symbol, module)
    k = KERNELS[(symbol, module)]
    attrs = []
    cluster = cluster or k['cluster']
    if cluster > 1:
        attrs.append(Attribute(4, 0, (C.c_uint32 * 16)(cluster, 1, 1)))
    if programmatic:
        attrs.append(Attribute(6, 0, (C.c_uint32 * 16)(1)))
    array = (Attribute * max(1, len(attrs)))(*attrs)
    config = LaunchConfig((C.c_uint32 * 3)(*grid), (C.c_uint32 * 3)(k['threads'], 1, 1), k['sharedBytes'],
                          torch.cuda.current_stream().cuda_stream, array, len(attrs))
    pointers = (C.c_void_p * len(args))(*[a.address if isinstance(a, TensorMap) else C.addressof(a) for a in args])
    check(cuda.cuLaunchKernelEx(C.byref(config), f, pointers, None), f'cuLaunchKernelEx {symbol}')


OUT_DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def block_ps():
    """Picoseconds that memory takes for the latent rows of 64 tokens, at nine tenths of its nominal rate."""
    kilohertz, bits = C.c_int(), C.c_int()
    check(cuda.cuDeviceGetAttribute(C.byref(kilohertz), 36, 0), 'memory clock')
    check(cuda.cuDeviceGetAttribute(C.byref(bits), 37, 0), 'memory bus')
    return round(64 * 1152 * 1e12 / (0.9 * kilohertz.value * 1e3 * bits.value / 8 * 2))


def tiles_of_group(rows, tile_rows):
    return 1 << max(-(-rows // tile_rows) - 1, 0).bit_length()


MOST_BLOCKS = {16: {2: 4, 4: 8, 8: 8}, 32: {2: 8, 4: 4}}


def tile_rows_of(rows, batch, tokens, sms):
    """Rows of a tile; small ones stand beside each other while tokens are few: see packages/cuda/src/decode/shape.ts."""
    for tile_rows in (16, 32):
        if rows <= tile_rows:
            return tile_rows
        tiles = tiles_of_group(rows, tile_rows)
        most = MOST_BLOCKS[tile_rows].get(tiles)
        if most is None:
            continue
        groups = sms // tiles
        if tokens is None:
            if tile_rows == 32 and tiles == 2 and batch * 16 <= groups:
                return 32
        elif batch * 4 <= groups and tokens <= groups * most * -(-rows // tile_rows) / tiles * 64:
            return tile_rows
    return 64


class Decode:
    """A decode call with everything prepared: q [t, h_q, 576], kv [num_blocks, page_size, 576], block_table [b, n], seq_lens [b]. expects:
    whether it is planned for as many tokens as there are now."""

    def __init__(self, q, kv, block_table, seq_lens, s_q, scale, query_start=None, out_dtype=None, variant=None, portable=False, expects=False,
                 **tune):
        b, (t, h_q, _), page = seq_lens.numel(), q.shape, kv.shape[1]
        rows = s_q * h_q
        tokens = int(seq_lens.sum()) if expects else None
        name = 'bf16' if q.dtype == torch.bfloat16 else 'f16'
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        tma = page in (16, 32) or page % 64 == 0
        variant = variant or ('tensor' if tma else 'gather')

        if portable:
            self.module, self.symbol = 'mla_decode_portable.ptx', f'mla_decode_portable_{name}'
        else:
            self.module, self.symbol = 'mla_decode_sm90.cubin', f'mla_decode_{name}'
        whole = 16 if rows <= 16 else 32 if rows <= 32 else 64  # tiles that need no others beside them
        tile_rows = tune.get('tile', whole if 'merge' in tune or 'share' in tune else tile_rows_of(rows, b, tokens, sms))
        few_rows = not portable and variant == 'tensor' and tile_rows <= 32
        if few_rows:
            self.module, self.symbol = 'mla_decode_few_sm90.cubin', self.symbol + ('_few' if tile_rows == 16 else '_few32')
        tile_rows = KERNELS[(self.symbol, self.module)]['tileRows']
        tiles = -(-rows // tile_rows)
        group = tiles_of_group(rows, tile_rows) if few_rows else tune.get('group') or min(tiles, 4)
        workers = max(1, (sms * 2 if portable else sms) // group) * group
        groups = b * -(-tiles // group)
        by_tile = groups <= workers // group
        # Few parts a tile: the decode kernel merges them itself. Of a ragged plan's sequences all but one may be empty.
        ragged = query_start is not None
        expected = min(b, t) if few_rows else groups // b if ragged else groups
        alike = group == 1 and expects and int(seq_lens.max()) * b <= tokens * 1.25
        few_parts = (4 * expected > workers if few_rows else 3 * expected >= workers // group or alike and 5 * expected > workers)
        few_parts = few_parts or few_rows and ragged and (not by_tile or b > 128)
        merges = not portable and variant == 'tensor' and not (few_rows and group > 1) and tune.get('merge', few_parts)
        if few_rows and group == 1 and ragged and (not by_tile or b > 128):
            merges = True  # the combine kernel takes no more sequences
        shares = not portable and variant == 'tensor' and not few_rows and not merges and tune.get('share', b * tiles > 2 or expects)
        merge = '_merge_paced' if not few_rows and group == 1 and tune.get('paced', 1) else '_merge'
        if not portable:
            self.symbol += '_gather' if variant == 'gather' else merge if merges else '_share' if shares else ''
        self.out = torch.full((t, h_q, 512), float('nan'), dtype=out_dtype or q.dtype, device='cuda')
        self.lse = torch.full((t, h_q), float('nan'), dtype=torch.float32, device='cuda')
        part = torch.float16 if shares or not portable and not few_rows and not merges and rows > 32 else torch.float32
        size = workers * {16: 7, 32: 11, 64: 18}[tile_rows] * 256 * 4 if merges else 2 * workers * tile_rows * 512
        if few_rows and not merges:
            size = 2 * workers * tile_rows // 16 * (16 * 512 * 2 + 4 * 256) // 4
        self.partial = torch.full((size * part.itemsize,), 0xff, dtype=torch.uint8, device='cuda')
        self.partial_lse = torch.full((2 * workers * tile_rows * 8,), 0xff, dtype=torch.uint8, device='cuda')
        self.splits = torch.full((workers // group * 8,), 0x7f7f7f7f, dtype=torch.int32, device='cuda')
        self.ready = torch.zeros(2 * workers, dtype=torch.int32, device='cuda')
        self.keep = (q, kv, block_table, seq_lens, query_start)
        self.params = DecodeParams(q.data_ptr(), kv.data_ptr(), block_table.data_ptr(), seq_lens.data_ptr(),
                                   query_start.data_ptr() if query_start is not None else None, self.out.data_ptr(),
                                   self.lse.data_ptr(), self.partial.data_ptr(), self.partial_lse.data_ptr(),
                                   block_table.stride(0), kv.stride(0), kv.stride(1), scale, b, s_q, h_q, page,
                                   OUT_DTYPES[self.out.dtype], workers, group, tune.get('min_blocks', 1 if portable or few_rows else 2),
                                   tune.get('overhead', 1 if portable else 3 if shares else 2), tile_rows,
                                   int(by_tile), self.splits.data_ptr(), self.ready.data_ptr() if merges or shares else None,
                                   kv.shape[0], workers // group, -(-tiles // group), tune.get('lead', 2 if merges and not few_rows else 0),
                                   tune.get('block_ps', block_ps()), 0)
        self.grid = (workers, 1, 1)
        entries, group_rows = groups if by_tile else workers // group, min(tile_rows * group, rows)
        by_halves = entries * group_rows <= 512 and workers // group >= 8 * entries
        blocks = max(1, min(group_rows, 2 * sms // entries))
        self.combine_grid = (entries, group_rows, 2) if by_halves else (entries, blocks, 1)
        if few_rows:
            pieces = next(n for n in (128, 64, 32, 16, 8, 4, 2, 1) if entries * n <= 2 * sms or n == 1)
            self.combine_grid = (2 * sms, 1, 1) if ragged else (entries, pieces, 1)
        self.combine = None if merges or shares else (f'mla_combine_few{tile_rows * group if tile_rows * group > 16 else ""}' + '_ragged' * ragged) if few_rows else (
            'mla_combine' + ('' if portable or by_halves or not tune.get('rows', 1) else '_rows') + ('_f16' if part == torch.float16 else ''))
        self.args = [self.params]
        if not portable:
            self.q_map = tensor_map(q.dtype, q.data_ptr(), (64, t * h_q, 9), (1152, 128), (64, tile_rows, 9))

            def kv_map(tiles):
                return self.q_map if variant == 'gather' else tensor_map(
                    q.dtype, kv.data_ptr(), (64, page, 9, kv.shape[0]), (kv.stride(1) * 2, 128, kv.stride(0) * 2),
                    (64, min(page, 64), tiles, 1), tune.get('promotion', 0))
            self.args += [self.q_map, kv_map(2), kv_map(1)]

    def __call__(self):
        launch(self.symbol, self.module, self.grid, self.args, programmatic=self.module.endswith('cubin'))
        if self.combine:
            launch(self.combine, self.module, self.combine_grid, [self.params], programmatic=self.module.endswith('cubin'))

    def clean(self):
        """Whether the workspace is as a launch has to find it."""
        handed = None
        if '_few' in self.symbol and self.symbol.endswith('_merge'):  # of a part's words of 4 KiB the last is waited for
            handed = self.partial.view(self.params.workers, -1, 4096)[:, -1]
        elif self.symbol.endswith('share'):
            handed = self.partial_lse
        return int(self.ready.sum()) == 0 and (handed is None or bool((handed == 0xff).all()))
