"""Decode against the float64 oracle: a matrix of cases, run to run identity, poisoned slots. `check.py [sm90|portable] [quick]`."""
import itertools
import os
import sys
import time

import torch

import oracle
from driver import Decode

BF, FP = torch.bfloat16, torch.float16
SCALE = 576 ** -0.5


def cases(quick):
    yield dict(lengths=[64], s_q=1, h_q=16)
    yield dict(lengths=[1], s_q=1, h_q=1)
    yield dict(lengths=[128], s_q=1, h_q=64)
    yield dict(lengths=[200], s_q=1, h_q=16)
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=32)
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=64)
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=128)
    yield dict(lengths=[777, 4096, 1, 130], s_q=2, h_q=128)
    yield dict(lengths=[4641, 45118, 1730, 1696], s_q=4, h_q=16)
    for page in (1, 16, 32, 64, 128):
        yield dict(lengths=[333, 0, 64, 1029], s_q=1, h_q=16, page=page)
        yield dict(lengths=[333, 0, 64, 1029], s_q=2, h_q=128, page=page)
    yield dict(lengths=[500, 3], s_q=1, h_q=16, dtype=FP)
    yield dict(lengths=[500, 3], s_q=2, h_q=128, dtype=FP)
    yield dict(lengths=[500, 3, 64], s_q=1, h_q=16, dtype=FP, page=1, out_dtype=torch.float32)
    yield dict(lengths=[500, 3, 64, 9000], s_q=2, h_q=16, dtype=FP, page=128, out_dtype=torch.float32)
    yield dict(lengths=[2, 1, 5], s_q=4, h_q=16)
    yield dict(lengths=[3000, 500, 0, 700], h_q=8, starts=[0, 2, 2, 3, 4])
    yield dict(lengths=[64, 500, 0, 700], h_q=16, starts=[0, 1, 3, 3, 40], out_dtype=torch.float32)
    # Parts merged by the decode kernel itself, where a tile has many of them too.
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=128, merge=True)
    yield dict(lengths=[777, 4096, 1, 130], s_q=2, h_q=126, merge=True)
    yield dict(lengths=[4641, 45118, 1730, 1696], s_q=4, h_q=16, merge=True)
    yield dict(lengths=[333, 0, 64, 1029], s_q=2, h_q=9, page=16, merge=True)
    yield dict(lengths=[i * 37 % 1300 for i in range(50)], s_q=1, h_q=32)
    yield dict(lengths=[500, 3000], s_q=1, h_q=63, dtype=FP, page=128, out_dtype=torch.float32, merge=True)
    yield dict(lengths=[64, 500, 0, 700], h_q=16, starts=[0, 1, 3, 3, 40], merge=True)
    # In four parts that one block takes in, and KV blocks in turns up to those that are masked.
    yield dict(lengths=[700] * 32, s_q=1, h_q=64, merge=True)
    yield dict(lengths=[1500 + i for i in range(27)], s_q=4, h_q=16, merge=True)
    yield dict(lengths=[1030 - i for i in range(30)], s_q=2, h_q=20, page=32, merge=True)
    yield dict(lengths=[1921] * 32, s_q=1, h_q=33, dtype=FP, page=128, out_dtype=torch.float32, merge=True)
    # And by all blocks that have a part.
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=128, share=True, merge=False)
    yield dict(lengths=[777, 4096, 1, 130], s_q=2, h_q=126, share=True, merge=False)
    yield dict(lengths=[4641, 45118, 1730, 1696], s_q=4, h_q=16, share=True, merge=False)
    yield dict(lengths=[333, 0, 64, 1029], s_q=2, h_q=9, page=16, share=True, merge=False)
    yield dict(lengths=[500, 30000], s_q=1, h_q=63, dtype=FP, page=128, out_dtype=torch.float32, share=True, merge=False)
    yield dict(lengths=[64, 500, 0, 700], h_q=16, starts=[0, 1, 3, 3, 40], share=True, merge=False)
    # Small tiles beside each other.
    yield dict(lengths=[333, 0, 64, 1029], s_q=1, h_q=128, tile=16)
    yield dict(lengths=[333, 0, 64, 1029], s_q=2, h_q=9, page=16, tile=16)
    yield dict(lengths=[500, 3000], s_q=1, h_q=63, dtype=FP, page=128, out_dtype=torch.float32, tile=16)
    yield dict(lengths=[64, 500, 0, 700, 130, 900], h_q=16, starts=[0, 1, 3, 3, 7, 7, 15], tile=16)
    yield dict(lengths=[1000, 0, 63, 65], s_q=1, h_q=128, tile=32)
    yield dict(lengths=[777, 4096, 1, 130], s_q=2, h_q=63, tile=32)
    yield dict(lengths=[4641, 45118, 1730, 1696], s_q=4, h_q=16, tile=32)
    yield dict(lengths=[333, 0, 64, 1029], s_q=4, h_q=9, page=16, tile=32)
    yield dict(lengths=[500, 30000], s_q=1, h_q=65, dtype=FP, page=128, out_dtype=torch.float32, tile=32)
    yield dict(lengths=[64, 500, 0, 700, 130, 900], h_q=16, starts=[0, 1, 3, 3, 7, 7, 15], tile=32)
    yield dict(lengths=[i * 37 % 1300 for i in range(20)], s_q=1, h_q=96, tile=32)
    if quick:
        return
    for h_q, s_q in itertools.product((1, 3, 9, 16, 63, 64, 126, 128), (1, 2, 4)):
        yield dict(lengths=[700, 129, 64], s_q=s_q, h_q=h_q)
        yield dict(lengths=[700, 129, 64], s_q=s_q, h_q=h_q, merge=True)
        yield dict(lengths=[700, 129, 64], s_q=s_q, h_q=h_q, share=False, merge=False)
        for tile in (16, 32):
            if tile < s_q * h_q <= 128:
                yield dict(lengths=[700, 129, 64], s_q=s_q, h_q=h_q, tile=tile)
    yield dict(lengths=[131072], s_q=1, h_q=128)
    yield dict(lengths=[131072], s_q=1, h_q=128, share=False, merge=False)
    yield dict(lengths=[i * 37 % 3000 for i in range(128)], s_q=1, h_q=128, share=True, merge=False)
    yield dict(lengths=[131072, 7], s_q=1, h_q=16)
    yield dict(lengths=[131071], s_q=4, h_q=126, page=16)
    yield dict(lengths=[i * 37 % 3000 for i in range(128)], s_q=1, h_q=128)
    for h_q in (16, 32, 64):  # loads at a pace
        yield dict(lengths=[i * 61 % 5000 for i in range(128)], s_q=1, h_q=h_q)
    yield dict(lengths=[3000] * 128, s_q=1, h_q=48, page=32)
    yield dict(lengths=[i * 53 % 900 for i in range(32)], s_q=2, h_q=64, page=32)
    yield dict(lengths=[32768 + i for i in range(128)], s_q=1, h_q=16)  # 4.8 GB of cache
    yield dict(lengths=[65536 + 64 * i for i in range(40)], s_q=1, h_q=128, page=1)
    yield dict(lengths=[300, 4096], s_q=1, h_q=128, scale=1.0)


def run(case, portable):
    lengths, h_q, dtype = case['lengths'], case['h_q'], case.get('dtype', BF)
    s_q = case.get('s_q', 1)
    starts, query_start = [i * s_q for i in range(len(lengths) + 1)], None
    if 'starts' in case:
        starts = case['starts']
        s_q = max(b - a for a, b in zip(starts, starts[1:]))
        query_start = torch.tensor(starts, dtype=torch.int32, device='cuda')
    q, kv, table, lens = oracle.make_inputs(lengths, s_q, h_q, case.get('page', 64), dtype, seed=len(lengths) + h_q)
    q = q[:starts[-1]].contiguous()
    scale = case.get('scale', SCALE)
    tune = {} if portable else {name: case[name] for name in ('merge', 'share', 'tile') if name in case}
    call = Decode(q, kv, table, lens, s_q, scale, query_start, case.get('out_dtype'), portable=portable, **tune)
    call()
    torch.cuda.synchronize()
    first = call.out.clone()
    first_lse = call.lse.clone()
    error, lse_error, why = oracle.compare(first, first_lse, q, kv, table, lengths, starts, scale)
    for _ in range(3):
        call.out.fill_(float('nan'))
        call()
        if why is None and not (torch.equal(call.out, first) and torch.equal(call.lse, first_lse)):
            why = 'differs from run to run'
    if why is None and not call.clean():
        why = 'leaves its workspace dirty'
    limit = 5e-3 if dtype == BF else 1e-3
    if why is None and not (error < limit and lse_error < 1e-4):
        why = 'beyond the limit'
    return error, lse_error, why


def keeps_nan(portable):
    """A NaN query stays in its own rows, through parts that are handed over too; what is wrong otherwise."""
    for lengths, h_q, tune in (([700] * 40, 16, {}), ([700] * 40, 32, {}), ([700] * 40, 64, {}), ([3000], 16, {}), ([3000], 32, {}),
                               ([3000, 500], 64, dict(tile=64)), ([3000, 500], 64, dict(tile=32))):
        q, kv, table, lens = oracle.make_inputs(lengths, 1, h_q, 64)
        right, call = Decode(q.clone(), kv, table, lens, 1, SCALE, **tune), Decode(q, kv, table, lens, 1, SCALE, **tune)
        q[0, 1] = float('nan')
        right()
        call()
        torch.cuda.synchronize()
        rows = torch.isnan(call.out).any(-1)
        if int(rows.sum()) != 1 or not bool(rows[0, 1]) or not torch.equal(call.out[~rows], right.out[~rows]) or not call.clean():
            return f'{call.symbol}: a NaN query is not only in its own row'
    return None


def follows_query_starts(portable):
    """A plan whose sequences lose their rows between launches; what is wrong otherwise."""
    forms = ((16, {}), (128, {})) if portable else (
        (16, {}), (32, {}), (128, {}), (128, dict(share=False)), (64, dict(tile=32)), (128, dict(tile=16)), (64, dict(variant='gather')))
    for h_q, tune in forms:
        q, kv, table, lens = oracle.make_inputs([3000, 4000, 5000], 1, h_q, 64)
        starts = torch.tensor([0, 1, 2, 3], dtype=torch.int32, device='cuda')
        call = Decode(q, kv, table, lens, 1, SCALE, starts, portable=portable, **tune)
        call()
        starts.copy_(torch.tensor([0, 1, 1, 2]))
        right = Decode(q, kv, table, lens, 1, SCALE, starts, portable=portable, **tune)
        for each in (call, right):
            each.out.fill_(-1)
            each()
        torch.cuda.synchronize()
        if not torch.equal(call.out, right.out) or not bool((call.out[2] == -1).all()) or torch.isnan(right.out[:2]).any():
            return f'{call.symbol}: a sequence without rows is merged from an older launch'
    return None


if __name__ == '__main__':
    portable, quick = 'portable' in sys.argv, 'quick' in sys.argv
    failed = done = 0
    worst = worst_lse = 0.0
    for case in cases(quick):
        text = ' '.join(f'{k}={v if not isinstance(v, list) or len(v) < 8 else f"{len(v)} up to {max(v)}"}' for k, v in case.items())
        print(f'.. {text}', flush=True)
        start = time.time()
        error, lse_error, why = run(case, portable)
        done += 1
        if why:
            failed += 1
            print(f'FAIL {text}: {why} (relative L2 {error:.2e}, lse {lse_error:.2e})', flush=True)
        else:
            worst, worst_lse = max(worst, error), max(worst_lse, lse_error)
        torch.cuda.empty_cache() if time.time() - start > 1 else None
    for property_of_all in (follows_query_starts,) if portable else (keeps_nan, follows_query_starts):
        why = property_of_all(portable)
        done += 1
        if why:
            failed += 1
            print(f'FAIL {why}', flush=True)
    print(f'{"portable" if portable else "sm90"}: {done - failed} of {done} cases pass, worst relative L2 {worst:.2e}, lse {worst_lse:.2e}')
    sys.stdout.flush()
    os._exit(1 if failed else 0)
