"""Random batches, every form of the decode kernels, several launches in a row whose lengths are rewritten between them, and with ragged queries
their numbers too: `check_random.py SECONDS [SEED]`. Each result has to be that of a launch alone, and the forms have to agree."""
import os
import random
import sys
import time

import torch

import oracle
from driver import Decode
from turns import difference

LAUNCHES = 12


def a_case():
    h_q = random.choice([1, 3, 8, 9, 16, 17, 32, 48, 64, 65, 128])
    batch = random.choice([1, 2, 4, 7, 8, 13, 20, 26, 27, 40, 66, 100, 128, 140])
    s_q = random.choice([1, 1, 1, max(16 // h_q, 1), 2])
    most = random.choice([100, 1000, 5000 if batch < 50 else 2000])
    return batch, s_q, h_q, most, random.choice([16, 32, 64, 128]), random.choice([None, None, 0.1, 0.9])


def forms(rows, batch):
    yield dict(merge=True)
    for tile in (16, 32):
        if tile < rows <= 128 and batch <= 13:
            yield dict(tile=tile)
    yield dict(merge=False, share=False)
    if rows > 32:
        yield dict(merge=False, share=True)
    else:
        yield dict(merge=False)  # again: each overlaps the other's combine kernel


def starts_of(batch, s_q, present):
    """Query starts of sequences of which each is there with that probability, the first in any case."""
    counts = torch.randint(1, s_q + 1, (batch,)) * (torch.rand(batch) < present)
    counts[0] = s_q
    return torch.cat([torch.zeros(1), counts.cumsum(0)]).to(torch.int32)


def check(batch, s_q, h_q, most, page, present, seed):
    """What is wrong, a line each. present: the share of sequences that have queries, None where each has s_q."""
    sets = [torch.randint(0, most, (batch,), dtype=torch.int32) for _ in range(3)]
    q, kv, table, lengths = oracle.make_inputs(torch.stack(sets).amax(0).tolist(), s_q, h_q, page, seed=seed)
    starts = None if present is None else torch.zeros(batch + 1, dtype=torch.int32, device='cuda')
    of_sets = [torch.tensor([batch * s_q]) if starts is None else starts_of(batch, s_q, present) for _ in sets]
    rows = [int(each[-1]) for each in of_sets]

    def rewrite(n):
        lengths.copy_(sets[n])
        if starts is not None:
            starts.copy_(of_sets[n])

    calls = [Decode(q, kv, table, lengths, s_q, 576**-0.5, query_start=starts, **tune) for tune in forms(s_q * h_q, batch)]
    wrong, right = [], []
    for n in range(3):
        rewrite(n)
        for call in calls:
            torch.cuda.synchronize()
            call()
        torch.cuda.synchronize()
        right.append([call.out[: rows[n]].clone() for call in calls])
        wrong += [f'{call.symbol} differs' for call, out in zip(calls, right[-1]) if not difference(out, right[-1][0]) < 5e-3 and right[-1][0].any()]
    sets, of_sets = [each.cuda() for each in sets], [each.cuda() for each in of_sets]
    outs = []
    for launch in range(LAUNCHES):
        rewrite(launch % 3)
        for i, call in enumerate(calls):
            call()
            outs.append((i, launch % 3, call.out[: rows[launch % 3]].clone()))
        for _ in range(launch % 3):
            for call in calls:
                call()
    torch.cuda.synchronize()
    wrong += [f'{calls[i].symbol} is not what it is alone' for i, at, out in outs if not torch.equal(out, right[at][i])]
    return wrong + [f'{call.symbol} leaves its workspace dirty' for call in calls if not call.clean()]


if __name__ == '__main__':
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    random.seed(seed)
    torch.manual_seed(seed)
    end, cases, failed = time.time() + seconds, 0, 0
    while time.time() < end:
        case = a_case()
        wrong = check(*case, seed=cases)
        for line in sorted(set(wrong)):
            print(f'FAIL {case}: {line} ({wrong.count(line)} times)', flush=True)
        cases += 1
        failed += bool(wrong)
    print(f'random batches: {cases - failed} of {cases} right')
    sys.stdout.flush()
    os._exit(1 if failed else 0)
