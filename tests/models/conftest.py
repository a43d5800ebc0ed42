"""Fixtures of the model tests."""

from __future__ import annotations

import pytest
import wkv

ISAS = [isa.name for isa in wkv.isas() if isa.runnable]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one instruction set: WKV_ISA is read when a model loads."""
    name: str = request.param
    monkeypatch.setenv("WKV_ISA", name)
    return name
