"""Random batches, every form of the decode kernels, several launches in a row whose lengths are rewritten between them: `check_random.py SECONDS
[SEED]`. Each result has to be that of a launch alone, and the forms have to agree."""
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
    return batch, s_q, h_q, random.choice([100, 1000, 5000 if batch < 50 else 2000]), random.choice([16, 32, 64, 128])


def forms(rows):
    yield dict(merge=True)
    yield dict(merge=False, share=False)
    if rows > 16:
        yield dict(merge=False, share=True)


def check(batch, s_q, h_q, most, page, seed):
    """What is wrong, a line each."""
    sets = [torch.randint(0, most, (batch,), dtype=torch.int32) for _ in range(3)]
    q, kv, table, lengths = oracle.make_inputs(torch.stack(sets).amax(0).tolist(), s_q, h_q, page, seed=seed)
    calls = [Decode(q, kv, table, lengths, s_q, 576**-0.5, **tune) for tune in forms(s_q * h_q)]
    wrong, right = [], []
    for each in sets:
        lengths.copy_(each)
        for call in calls:
            torch.cuda.synchronize()
            call()
        torch.cuda.synchronize()
        right.append([call.out.clone() for call in calls])
        wrong += [f'{call.symbol} differs' for call, out in zip(calls, right[-1]) if not difference(out, right[-1][0]) < 5e-3 and right[-1][0].any()]
    sets = [each.cuda() for each in sets]
    outs = []
    for launch in range(LAUNCHES):
        lengths.copy_(sets[launch % 3])
        for i, call in enumerate(calls):
            call()
            outs.append((i, launch % 3, call.out.clone()))
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
