"""Kernels that do one thing of what a decode does, compiled here by nvcc: reading its pages (read.cu), its products (products.cu)."""
import ctypes as C
import os
import shutil
import subprocess
import tempfile

import torch

import driver
from driver import KERNELS

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE_BYTES = 64 * 576 * 2
MOST_PAGES = 2048  # that a block reads
OPERAND_BYTES = 3 * 9 * 8192
LOOPS, STEPS = 600, 36
_cubins = {}


def compiled(source, symbols, threads, shared):
    """The source's cubin, known to the driver; None where there is no nvcc."""
    if source not in _cubins:
        cubin = None
        if shutil.which('nvcc'):
            cubin = os.path.join(tempfile.mkdtemp(), source.replace('.cu', '.cubin'))
            flags = ['-std=c++17', '-O3', '-gencode', 'arch=compute_90a,code=sm_90a', '-cubin']
            subprocess.run(['nvcc', *flags, os.path.join(HERE, source), '-o', cubin], check=True)
            for symbol in symbols:
                KERNELS[(symbol, cubin)] = {'threads': threads, 'sharedBytes': shared, 'cluster': 1}
        _cubins[source] = cubin
    return _cubins[source]


def multiprocessors():
    return torch.cuda.get_device_properties(0).multi_processor_count


def reading(kv, table, seq_lens):
    """A call that reads the pages of kv [num_blocks, 64, 576] that a table names for these lengths; None without nvcc."""
    cubin = compiled('read.cu', ['read_pages'], 128, 3 * PAGE_BYTES)
    pages = torch.cat([row[: -(-n // 64)] for row, n in zip(table, seq_lens.tolist())]).contiguous()
    assert pages.numel() <= MOST_PAGES * multiprocessors()
    args = [C.c_void_p(kv.data_ptr()), C.c_void_p(pages.data_ptr()), C.c_int32(pages.numel())]

    def call(keep=(kv, pages)):
        driver.launch('read_pages', cubin, (multiprocessors(), 1, 1), args, programmatic=True)

    return call if cubin else None


def products():
    """(name, call, GFLOP) of each kind of product that a decode has, and of what a pair of KV blocks takes; none without nvcc."""
    scores, values, pair = STEPS * 64, STEPS * 256, STEPS * 64 + 8 * 256
    columns = {
        'scores_from_memory': scores, 'scores_from_registers': scores, 'values_from_memory': values, 'values_from_registers': values,
        'pair_scored_from_memory': pair, 'pair_scored_from_registers': pair,
    }
    cubin = compiled('products.cu', columns, 256, OPERAND_BYTES + 1024)
    fill = torch.randn((OPERAND_BYTES + 1024 * multiprocessors()) // 2, device='cuda').bfloat16()
    out = torch.zeros(256, device='cuda')
    args = [C.c_void_p(fill.data_ptr()), C.c_void_p(out.data_ptr()), C.c_int32(LOOPS)]

    def call_of(symbol, keep=(fill, out)):
        return lambda: driver.launch(symbol, cubin, (multiprocessors(), 1, 1), args)

    flop = {name: 2 * multiprocessors() * LOOPS * 2 * 64 * n * 16 for name, n in columns.items()}
    return [(name.replace('_', ' '), call_of(name), flop[name] / 1e9) for name in columns] if cubin else []
