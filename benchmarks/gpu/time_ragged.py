"""Plans for ragged queries of which some sequences are there: as planned, merged in pairs, and a plan for just those sequences, in turns."""
import torch

import oracle
from driver import Decode
from turns import difference, in_turns

SCALE = 576**-0.5
# sequences planned, there, and the tokens of each
CASES = [
    (1, 1, 4096), (4, 4, 4096), (8, 8, 4096), (64, 1, 4096), (64, 2, 4096), (64, 8, 4096), (64, 16, 4096), (64, 32, 4096), (64, 64, 4096),
    (64, 64, 1000), (128, 1, 4096), (128, 64, 1000), (128, 128, 1000), (128, 128, 4096), (33, 33, 4096), (16, 16, 300),
]


def contenders_for(planned, there, tokens, h_q):
    """Calls of the three plans on the same sequences, spread over those that are planned, and how far their outputs are apart."""
    where = [i * planned // there for i in range(there)]
    lengths = [tokens if i in where else 0 for i in range(planned)]
    starts = torch.tensor([0] + lengths, dtype=torch.int32, device='cuda').clamp(max=1).cumsum(0, dtype=torch.int32)
    index = torch.tensor(where, device='cuda')
    sets = max(1, min(16, -(-(300 << 20) // (there * tokens * 1152))))
    calls = [[], [], []]
    for seed in range(sets):
        q, kv, table, seq_lens = oracle.make_inputs(lengths, 1, h_q, 64, seed=seed, poison=False)
        q = q[:there].contiguous()
        calls[0].append(Decode(q, kv, table, seq_lens, 1, SCALE, query_start=starts))
        calls[1].append(Decode(q, kv, table, seq_lens, 1, SCALE, query_start=starts, merge=1))
        calls[2].append(Decode(q, kv, table[index].contiguous(), seq_lens[index].contiguous(), 1, SCALE))
    for of_plan in calls:
        of_plan[0]()
    torch.cuda.synchronize()
    apart = max(difference(of_plan[0].out, calls[0][0].out) for of_plan in calls[1:])
    return [[of_plan[i % sets] for i in range(max(10, sets))] for of_plan in calls], apart


if __name__ == '__main__':
    print(torch.cuda.get_device_name())
    print('| heads | planned | there | tokens | us | in pairs us | not ragged us | apart |\n|---|---|---|---|---|---|---|---|', flush=True)
    for h_q in (16, 128):
        for planned, there, tokens in CASES:
            contenders, apart = contenders_for(planned, there, tokens, h_q)
            times = in_turns(contenders)
            print(f'| {h_q} | {planned} | {there} | {tokens} |', *[f'{us:.1f} |' for us in times], f'{apart:.0e} |', flush=True)
            del contenders
            torch.cuda.empty_cache()
