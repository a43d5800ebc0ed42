"""Slow, short truths: every RWKV version in numpy float64, token by token.

Written from the formulas (docs/versions.md), independent of the C++ code. `load` picks the class of
a version by the checkpoint's tensor names and shapes::

    model = load(weights)                      # official tensor name -> array
    state = model.new_state()
    logits = model.step(token, state)          # [V]; the state is updated in place
    logits, state = model.forward(tokens)      # [T, V]

Parts of a state are named and oriented as `wkv.State` names them.
"""

from __future__ import annotations

from reference.common import Array, Reference, Sizes, State, Weights, detect
from reference.v1 import V1
from reference.v2 import V2
from reference.v3 import V3
from reference.v4 import V4
from reference.v5 import V5
from reference.v6 import V6
from reference.v7 import V7

__all__ = ["Array", "Reference", "Sizes", "State", "Weights", "detect", "load"]

_CLASSES: dict[str, type[Reference]] = {
    "1": V1,
    "2": V2,
    "3": V3,
    "4": V4,
    "5": V5,
    "6": V6,
    "7": V7,
}


def load(weights: Weights, variant: str | None = None) -> Reference:
    """Makes the reference of a checkpoint.

    Args:
        weights: Official tensor names -> arrays of any float type.
        variant: "6.0c" for a file that names and shapes alone call "6.0b".
    """
    sizes = detect({name: tuple(a.shape) for name, a in weights.items()})
    if variant is not None:
        sizes.version = variant
    return _CLASSES[sizes.version[0]](weights, sizes)
