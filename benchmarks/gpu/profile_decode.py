"""Launches one shape a few times, for ncu: `ncu ... python3 profile_decode.py B S_Q H_Q LENGTH`."""
import sys

import torch

import oracle
from driver import Decode

b, s_q, h_q, length = map(int, sys.argv[1:5])
call = Decode(*oracle.make_inputs([length] * b, s_q, h_q, 64, poison=False), s_q, 576 ** -0.5)
for _ in range(3):
    call()
torch.cuda.synchronize()
