"""A small model of two versions: every kernel once or more, for compute-sanitizer."""

from __future__ import annotations

import numpy as np
import wkv

for spec in ("v7:2x128:500", "v6:2x128:500", "v4:2x128:500"):
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
