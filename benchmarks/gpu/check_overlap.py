"""Decodes that overlap, their lengths rewritten in between: a decode that worked out its place from old lengths has to notice."""
import sys

import torch

import oracle
from driver import Decode

BATCH, ROUNDS = 128, 300


def check(h_q):
    random = torch.Generator().manual_seed(3)
    lengths = [torch.randint(1, 3000, (BATCH,), generator=random).int() for _ in range(2)]
    longest = torch.maximum(*lengths).tolist()
    q, kv, table, seq_lens = oracle.make_inputs(longest, 1, h_q, 64, seed=1, poison=False)
    call = Decode(q, kv, table, seq_lens, 1, 576**-0.5)
    assert call.symbol.endswith('_merge')
    lengths = [each.cuda() for each in lengths]
    right = []
    for each in lengths:
        seq_lens.copy_(each)
        torch.cuda.synchronize()
        call()
        torch.cuda.synchronize()
        right.append(call.out.clone())
    wrong = 0
    for _ in range(ROUNDS):
        outs = []
        for each in lengths:
            seq_lens.copy_(each)
            call()
            outs.append(call.out.clone())
        wrong += sum(not torch.equal(*pair) for pair in zip(outs, right))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            for each in lengths:
                seq_lens.copy_(each)
                call()
    for _ in range(50):
        graph.replay()
    torch.cuda.synchronize()
    return wrong + (not torch.equal(call.out, right[1])) + int(call.ready.sum())


if __name__ == '__main__':
    wrong = [check(h_q) for h_q in (16, 128)]
    print(f'overlapping decodes: {sum(wrong)} wrong of {len(wrong) * (2 * ROUNDS + 1)}')
    sys.exit(1 if sum(wrong) else 0)
