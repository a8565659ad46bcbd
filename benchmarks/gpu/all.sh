#!/usr/bin/env bash
# Checks the kernels on a machine with a Hopper GPU and PyTorch, and times those of decode, the tables last:
#   benchmarks/gpu/all.sh            about two minutes
#   PEERS=FOLDER adds FlashMLA and FlashAttention-3 (peers/build.sh fills it), SANITIZE=1 compute-sanitizer's memcheck.
# Every step has a limit of its own: a kernel that hangs costs that and no more. What fails ends it.
set -euo pipefail
cd "$(dirname "$0")"
export PYTHONUNBUFFERED=1
limited() { timeout -s KILL "$@"; }
quietly() { limited "$@" | grep -v '^\.\.'; }

quietly 30 python3 check.py quick
quietly 30 python3 check.py portable quick
limited 30 python3 check_append.py
limited 40 python3 check_overlap.py
limited 40 python3 check_crowded.py
limited 40 python3 check_random.py 10
limited 40 python3 time_linear.py check
if [ "${SANITIZE:-}" = 1 ]; then
  quietly 240 compute-sanitizer --error-exitcode 1 python3 check.py quick
  limited 90 compute-sanitizer --error-exitcode 1 python3 time_linear.py check 3,70
fi
quietly 120 python3 check.py
if [ -n "${PEERS:-}" ]; then limited 150 python3 side_by_side.py; else limited 90 python3 time_decode.py; fi
