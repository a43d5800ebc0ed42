"""A small model of two versions: every kernel once or more, for compute-sanitizer."""

from __future__ import annotations

import sys

import numpy as np
import wkv

channels = sys.argv[1] if len(sys.argv) > 1 else "128"
for spec in (f"v7:2x{channels}:500", f"v6:2x{channels}:500", f"v4:2x{channels}:500"):
    for dtype in ("fp16", "fp32"):
        model = wkv.Model.synthetic(spec, dtype=dtype, device="cuda")
        states = [model.new_state() for _ in range(12)]
        model.forward(list(range(70)), states[0])
        model.forward_batch([[1, 2, 3], [4], [5, 6]], states[:3])
        for rows in (1, 6, 12):
            for _ in range(3):
                logits = model.forward_batch([[i] for i in range(rows)], states[:rows])
        assert np.isfinite(np.asarray(logits)).all()
print("smoke: good")
