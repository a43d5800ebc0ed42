"""The float64 references against the official code's logits: who checks the checker."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from models.goldens import GOLDENS, Golden

# Error of the official fp32 code against float64 is at most 1.3e-5 on these files.
TOLERANCE = 1.5e-5


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_logits_state_and_continuation(golden: Golden) -> None:
    model = reference.load(golden.weights)
    logits, state = model.forward(golden.prompt)
    assert np.abs(logits - golden.logits).max() <= TOLERANCE
    for name, expected in golden.state.items():
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(state[name][: len(expected)] - expected).max() <= 2e-5 * scale, name
    logits, _ = model.forward(golden.continuation, state)
    assert np.abs(logits - golden.logits_cont).max() <= TOLERANCE
