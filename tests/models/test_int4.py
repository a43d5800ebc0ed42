"""int4 weights of every version: the right model, at four bits."""

from __future__ import annotations

import numpy as np
import pytest
import wkv

from models.goldens import GOLDENS, Golden

# Random weights are the worst case: 4.5 bits leave each matrix 8 % of error. Measured: 9 % (v4) to
# 34 % (v7a) of the logits' deviation; a wrong scale or order gives 140 %.
LIMIT = 0.4


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_golden(golden: Golden, isa: str) -> None:
    model = wkv.Model.load(golden.model, device="cpu", dtype="int4")
    assert model.dtype == "int4"
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    error = np.sqrt(np.mean((logits - golden.logits) ** 2)) / golden.logits.std()
    assert error <= LIMIT
