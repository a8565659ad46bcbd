"""Launches one shape, for ncu: `ncu ... python3 profile_decode.py B S_Q H_Q LENGTH` a few times by itself.

With `graph` behind them, as replays of a graph of calls over rotating buffers, each of which may start before the one before has ended. What memory
reads and writes for those: `ncu --graph-profiling graph --clock-control none --cache-control none --metrics dram__bytes_read.sum,dram__bytes_write.sum
python3 profile_decode.py 32 1 32 4096 graph`.
"""
import sys

import torch

import oracle
from driver import Decode
from time_decode import inputs_for
from turns import captured

SCALE = 576**-0.5


def calls_in_graph(b, s_q, h_q, length):
    """The graph of them, and how many they are."""
    inputs, _, launches = inputs_for((b, s_q, h_q, length))
    calls = [Decode(*x, s_q, SCALE, expects=True) for x in inputs]
    return captured([calls[i % len(calls)] for i in range(launches)]), launches


if __name__ == '__main__':
    b, s_q, h_q, length = map(int, sys.argv[1:5])
    if sys.argv[5:] == ['graph']:
        graph, launches = calls_in_graph(b, s_q, h_q, length)
        print(f'{launches} calls in a graph')
        call = graph.replay
    else:
        call = Decode(*oracle.make_inputs([length] * b, s_q, h_q, 64, poison=False), s_q, SCALE)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
