"""Decodes that start while the kernel that writes their lengths still runs: one that guessed from old lengths has to notice.

The lengths are written by mla_cast, which lets what follows start at once: an int32 below 2^15 is a bf16 of the same bits and a zero.
"""
import sys

import torch

import oracle
from driver import CastParams, Decode, launch

ROUNDS = 300


def written_by_cast(lengths, target):
    """A call that writes lengths to `target`, and the source that it reads."""
    bits = torch.zeros(len(lengths), 2, dtype=torch.int32)
    bits[:, 0] = lengths << 16
    source = bits.flatten().cuda().view(torch.float32)
    params = CastParams(source.data_ptr(), target.data_ptr(), 2 * len(lengths), 0, 0)
    return lambda: launch('mla_cast', 'mla_append.cubin', (1, 1, 1), [params]), source


def check(batch, h_q, ragged, form, **tune):
    random = torch.Generator().manual_seed(3)
    lengths = [torch.randint(128, 3000, (batch,), generator=random, dtype=torch.int32) for _ in range(2)]
    q, kv, table, seq_lens = oracle.make_inputs(torch.maximum(*lengths).tolist(), 1, h_q, 64, seed=1, poison=False)
    starts = torch.arange(batch + 1, dtype=torch.int32, device='cuda') if ragged else None
    call = Decode(q, kv, table, seq_lens, 1, 576**-0.5, starts, **(tune or dict(merge='_merge' in form)))
    assert call.symbol.endswith(form), call.symbol
    right = []
    for each in lengths:
        seq_lens.copy_(each)
        call()
        torch.cuda.synchronize()
        right.append(call.out.clone())
    writes = [written_by_cast(each, seq_lens) for each in lengths]
    wrong = 0
    for _ in range(ROUNDS):
        for (write, _), expected in zip(writes, right):
            write()
            call()
            wrong += not torch.equal(call.out, expected)
    return wrong + (not call.clean())


if __name__ == '__main__':
    cases = ((128, 16, '_few_merge'), (128, 32, '_few32_merge'), (128, 128, '_merge'), (128, 64, '_merge_paced'), (8, 16, '_few'), (8, 32, '_few32'),
             (8, 128, '_share'), (4, 64, '_few32', dict(tile=32)), (4, 128, '_few32', dict(tile=32)), (4, 128, '_few', dict(tile=16)))
    wrong = [check(batch, h_q, ragged, form, **(tune[0] if tune else {})) for batch, h_q, form, *tune in cases for ragged in (False, True)]
    print(f'overlapping decodes: {sum(wrong)} wrong of {len(wrong) * 2 * ROUNDS}')
    sys.exit(1 if sum(wrong) else 0)
