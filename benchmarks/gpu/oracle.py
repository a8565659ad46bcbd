"""Float64 attention over a paged cache, and the inputs of a case with everything unused poisoned."""
import torch


def make_inputs(lengths, s_q, h_q, page, dtype=torch.bfloat16, seed=0, spare=3, poison=True):
    """kv rows past a sequence's end and spare pages are NaN; table entries past its last page are huge."""
    g = torch.Generator(device='cuda').manual_seed(seed)
    b = len(lengths)
    pages = [-(-n // page) for n in lengths]
    total, width = sum(pages) + spare, max(max(pages), 1) + 2
    kv = torch.empty((total, page, 576), dtype=dtype, device='cuda')
    for i in range(0, total, max(1, (1 << 26) // (page * 576))):
        part = kv[i:i + max(1, (1 << 26) // (page * 576))]
        part.copy_(torch.randn(part.shape, generator=g, device='cuda', dtype=torch.float32))
    order = torch.randperm(total, generator=g, device='cuda').to(torch.int32)
    table = torch.full((b, width), 2**31 - 1, dtype=torch.int32, device='cuda')
    at = 0
    for s, n in enumerate(lengths):
        table[s, :pages[s]] = order[at:at + pages[s]]
        if poison and n % page:
            kv[order[at + pages[s] - 1].long(), n % page:] = float('nan')
        at += pages[s]
    if poison:
        kv[order[at:].long()] = float('nan')
    q = torch.randn((b * s_q, h_q, 576), generator=g, device='cuda', dtype=torch.float32).to(dtype)
    return q, kv, table, torch.tensor(lengths, dtype=torch.int32, device='cuda')


def attention(q, kv, table, length, s_q, scale):
    """One sequence: q [s_q, h, 576] -> out [s_q, h, 512], lse [s_q, h], float64."""
    if length == 0:
        return (torch.zeros(q.shape[0], q.shape[1], 512, dtype=torch.float64, device='cuda'),
                torch.full(q.shape[:2], float('-inf'), dtype=torch.float64, device='cuda'))
    page = kv.shape[1]
    rows = kv[table[:-(-length // page)].long()].reshape(-1, 576)[:length].double()
    scores = (q.double().reshape(-1, 576) @ rows.T).reshape(s_q, q.shape[1], length) * scale
    sees = length - s_q + 1 + torch.arange(s_q, device='cuda')
    scores.masked_fill_(torch.arange(length, device='cuda')[None, None, :] >= sees[:, None, None], float('-inf'))
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.where(lse.isinf(), torch.zeros_like(lse), lse)[..., None])
    return (weights.reshape(-1, length) @ rows[:, :512]).reshape(s_q, q.shape[1], 512), lse


def compare(out, lse, q, kv, table, lengths, starts, scale):
    """(relative L2 of out, largest lse error, None or the reason of failure) over every sequence."""
    if out.isnan().any() or lse.isnan().any():
        bad = out.isnan().any(-1).nonzero()
        return float('nan'), float('nan'), f'NaN in {len(bad)} rows, first {bad[:1].tolist()}'
    diff = ref = worst = 0.0
    for s, n in enumerate(lengths):
        a, e = starts[s], starts[s + 1]
        if a == e:
            continue
        step = max(1, int(2e9 // (8 * max(n, 1) * (e - a))))
        for h in range(0, q.shape[1], step):
            want, want_lse = attention(q[a:e, h:h + step], kv, table[s], n, e - a, scale)
            got, got_lse = out[a:e, h:h + step].double(), lse[a:e, h:h + step].double()
            diff += (got - want).square().sum().item()
            ref += want.square().sum().item()
            empty = want_lse.isinf()
            if (got_lse.isinf() != empty).any() or (got[empty] != 0).any():
                return float('nan'), float('nan'), f'empty rows of sequence {s} are not 0 and -inf'
            if (~empty).any():
                worst = max(worst, (got_lse - want_lse)[~empty].abs().max().item())
    error = (diff / ref) ** 0.5 if ref > 0 else diff
    return error, worst, None
