"""Times of torch.matmul for the products of wkv_cuda_micro, as JSON lines."""

from __future__ import annotations

import json

import torch

for dtype in (torch.float16, torch.bfloat16):
    for out, inner in ((2048, 2048), (8192, 2048), (2048, 8192), (16384, 4096)):
        w = torch.randn(out, inner, device="cuda").to(dtype)
        for rows in (16, 32, 64, 128, 256, 512, 1024, 4096):
            x = torch.randn(rows, inner, device="cuda").to(dtype)
            for _ in range(3):
                x @ w.T
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(20):
                x @ w.T
            end.record()
            torch.cuda.synchronize()
            us = start.elapsed_time(end) / 20 * 1e3
            row = {"dtype": str(dtype).split(".")[1], "out": out, "in": inner, "rows": rows}
            row |= {"us": us, "tflop_s": 2e-6 * rows * out * inner / us}
            print(json.dumps(row), flush=True)
