"""The append kernel against PyTorch: bytes of bf16 and fp8-656 rows; norm and rotary within a rounding step."""
import ctypes as C
import os
import sys

import torch

from driver import AppendParams, launch

MODULE = 'mla_append.cubin'


def run(latent, slots, cache, page, fmt, bytes_per_token, norm=None, table=None, positions=None, interleaved=1):
    p = AppendParams(latent.data_ptr(), norm.data_ptr() if norm is not None else None, table.data_ptr() if table is not None else None,
                     positions.data_ptr() if positions is not None else None, slots.data_ptr(), cache.data_ptr(),
                     page * bytes_per_token, bytes_per_token, 1e-6, latent.shape[0], page,
                     2 if latent.dtype == torch.float32 else 0, interleaved, fmt)
    launch('mla_append', MODULE, (latent.shape[0], 1, 1), [p])
    torch.cuda.synchronize()


def fp8_rows(x):
    tiles = x[:, :512].reshape(-1, 4, 128)
    amax = tiles.abs().amax(-1)
    scale = torch.exp2(torch.ceil(torch.log2((amax / 448).double()))).clamp(min=2.0 ** -13).float()
    values = (tiles / scale[..., None]).to(torch.float8_e4m3fn).view(torch.uint8).reshape(-1, 512)
    return torch.cat([values, scale.contiguous().view(torch.uint8), x[:, 512:].bfloat16().contiguous().view(torch.uint8)], 1)


torch.manual_seed(0)
n, page, blocks = 1000, 64, 40
spread = torch.randn(n, 576, device='cuda') * torch.exp2(torch.randint(-20, 12, (n, 1), device='cuda').float())
spread[3, :128] = 0
slots = torch.randperm(page * blocks, device='cuda')[:n].to(torch.int32)
slots[7] = -1
kept = slots >= 0
failed = 0


def report(name, ok):
    global failed
    failed += not ok
    print(f'{"ok  " if ok else "FAIL"} append {name}')


for fmt, size, want in ((0, 1152, spread.bfloat16().view(torch.uint8)), (1, 1152, spread.half().view(torch.uint8)), (2, 656, fp8_rows(spread))):
    cache = torch.full((blocks * page, size), 0xA5, dtype=torch.uint8, device='cuda')
    run(spread, slots, cache, page, fmt, size)
    same = torch.equal(cache[slots[kept].long()], want.reshape(n, size)[kept])
    untouched = torch.ones(blocks * page, dtype=torch.bool, device='cuda')
    untouched[slots[kept].long()] = False
    report(['bf16', 'f16', 'fp8-656'][fmt] + ' bytes', same and bool((cache[untouched] == 0xA5).all()))

x = torch.randn(n, 576, device='cuda')
weight, positions = torch.randn(512, device='cuda'), torch.randint(0, 500, (n,), dtype=torch.int32, device='cuda')
angle = torch.arange(500, device='cuda').double()[:, None] * 10000.0 ** (-torch.arange(32, device='cuda').double() / 32)
table = torch.stack([angle.cos(), angle.sin()], -1).float().contiguous()
for interleaved in (0, 1):
    cache = torch.zeros((blocks * page, 1152), dtype=torch.uint8, device='cuda')
    run(x, slots, cache, page, 0, 1152, weight, table, positions, interleaved)
    normed = x[:, :512].double() / (x[:, :512].double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    c, s = angle.cos()[positions.long()], angle.sin()[positions.long()]
    rope = x[:, 512:].double()
    a, b = (rope[:, 0::2], rope[:, 1::2]) if interleaved else (rope[:, :32], rope[:, 32:])
    ra, rb = a * c - b * s, a * s + b * c
    rotated = torch.stack([ra, rb], -1).reshape(n, 64) if interleaved else torch.cat([ra, rb], -1)
    want = torch.cat([normed, rotated], 1)[kept]
    got = cache.view(torch.bfloat16)[slots[kept].long()].double()
    error = ((got - want).norm() / want.norm()).item()
    report(f'norm and rotary, interleaved {interleaved}: relative L2 {error:.1e}', error < 2.5e-3)
sys.stdout.flush()
os._exit(1 if failed else 0)
