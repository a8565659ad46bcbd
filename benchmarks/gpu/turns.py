"""Contenders timed in turns in one run, and how far apart their results are."""
import os
import random

import torch

ROUNDS = int(os.environ.get('ROUNDS', '15'))


def captured(calls):
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def in_turns(contenders, rounds=ROUNDS):
    """Median microseconds a launch of each contender; the rounds go through all of them, each time in another order.

    What a contender leaves behind, the card's clock, is for another one each time. Each turn is a replay that is not timed and one that is: code of
    another contender has to leave the instruction caches first.
    """
    graphs = [captured(calls) for calls in contenders]
    times = [[] for _ in contenders]
    order, shuffled = list(range(len(contenders))), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for i in order:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graphs[i].replay()
            start.record()
            graphs[i].replay()
            end.record()
            end.synchronize()
            times[i].append(start.elapsed_time(end) * 1e3 / len(contenders[i]))
    return [sorted(mine)[len(mine) // 2] for mine in times]


def difference(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return ((a - b).norm() / b.norm()).item()
