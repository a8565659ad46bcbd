"""Contenders timed in turns in one run, and how far apart their results are."""
import torch


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


def in_turns(contenders, rounds):
    """Median microseconds a launch of each contender; the rounds go through all of them in turn."""
    graphs = [captured(calls) for calls in contenders]
    times = [[] for _ in contenders]
    for _ in range(rounds):
        for graph, calls, mine in zip(graphs, contenders, times):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            mine.append(start.elapsed_time(end) * 1e3 / len(calls))
    return [sorted(mine)[len(mine) // 2] for mine in times]


def difference(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return ((a - b).norm() / b.norm()).item()
