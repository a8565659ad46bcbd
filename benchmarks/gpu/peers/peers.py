"""FlashMLA and FlashAttention-3 as contenders: the libraries that build.sh makes, driven over torch tensors.

A peer is made once for a case and launched many times on a stream, so that a CUDA graph can hold it.
bf16, page size 64; q [b, s_q, h_q, 576], kv [num_blocks, 64, 576], out [b, s_q, h_q, 512].
"""

import ctypes
from pathlib import Path

import torch


class PeerArgs(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int) for name in ("b", "s_q", "h_q", "num_blocks", "causal", "max_blocks")]
        + [("scale", ctypes.c_float), ("num_sms", ctypes.c_int)]
        + [
            (name, ctypes.c_void_p)
            for name in (
                "q",
                "kv",
                "out",
                "lse",
                "block_table",
                "seq_lens",
                "meta",
                "num_splits",
                "lse_accum",
                "out_accum",
                "stream",
            )
        ]
    )


class _Peer:
    name: str
    library: str

    def __init__(self, folder, q, kv, block_table, seq_lens, scale, causal=True):
        self._lib = ctypes.CDLL(str(Path(folder) / self.library))
        b, s_q, h_q, _ = q.shape
        rows = s_q * h_q
        self.out = torch.empty(b, s_q, h_q, 512, dtype=torch.bfloat16, device=q.device)
        self.lse = torch.empty(b * rows, dtype=torch.float32, device=q.device)
        self._kept = [q, kv, block_table, seq_lens]
        self._args = PeerArgs(
            b=b,
            s_q=s_q,
            h_q=h_q,
            num_blocks=kv.shape[0],
            causal=int(causal),
            max_blocks=block_table.shape[1],
            scale=scale,
            num_sms=torch.cuda.get_device_properties(q.device).multi_processor_count,
            q=q.data_ptr(),
            kv=kv.data_ptr(),
            out=self.out.data_ptr(),
            lse=self.lse.data_ptr(),
            block_table=block_table.data_ptr(),
            seq_lens=seq_lens.data_ptr(),
        )
        self._allocate(b, rows, q.device)
        self.plan()

    def _hold(self, field, count, dtype, device):
        # Metadata starts at zero; the large accumulators are written before they are read.
        make = torch.zeros if dtype == torch.int32 else torch.empty
        tensor = make(count, dtype=dtype, device=device)
        self._kept.append(tensor)
        setattr(self._args, field, tensor.data_ptr())

    def _call(self, function):
        self._args.stream = torch.cuda.current_stream().cuda_stream
        getattr(self._lib, function)(ctypes.byref(self._args))

    def plan(self):
        """What is computed once for a set of lengths."""


class FlashMla(_Peer):
    name = "FlashMLA"
    library = "libflashmla.so"

    def _allocate(self, b, rows, device):
        parts = self._lib.flashmla_parts(ctypes.byref(self._args))
        self._hold("meta", parts * 8, torch.int32, device)
        self._hold("num_splits", b + 1, torch.int32, device)
        self._hold("lse_accum", (b + parts) * rows, torch.float32, device)
        self._hold("out_accum", (b + parts) * rows * 512, torch.float32, device)

    def plan(self):
        self._call("flashmla_plan")

    def launch(self):
        self._call("flashmla_decode")


class FlashAttention3(_Peer):
    name = "FA3"
    library = "libfa3.so"

    def _allocate(self, b, rows, device):
        splits = self._lib.fa3_splits(ctypes.byref(self._args))
        self._hold("meta", 4 * ((b + 3) // 4 * 4) + 4, torch.int32, device)
        self._hold("lse_accum", splits * b * rows, torch.float32, device)
        self._hold("out_accum", splits * b * rows * 512, torch.float32, device)

    def launch(self):
        self._call("fa3_decode")
