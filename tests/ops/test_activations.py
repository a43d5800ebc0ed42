"""Activations against float64 over their whole range, as an epilogue of a product with 1."""

from __future__ import annotations

import numpy as np
import pytest
from ops.harness import F32, F64, Target, load_ops, targets
from reference import ops as oracle

OPS = load_ops()
ACTIVATIONS = ["tanh", "sigmoid", "silu", "relu_squared", "exp_neg_exp", "decay7"]
# In units of the last place; exp(-exp(x)) loses what exp(x) is large, so absolutely.
ULPS = {"tanh": 1.6, "sigmoid": 3.0, "silu": 3.0, "relu_squared": 0.51, "decay7": 1.6}
ABSOLUTE = {"exp_neg_exp": 1e-7}

pytestmark = pytest.mark.parametrize("target", targets(), ids=str)


def apply(target: Target, name: str, x: F32) -> F32:
    device = target.open()
    weight = OPS.Weight(device, x.reshape(-1, 1), "fp32")
    one = np.ones((1, 1), np.float32)
    [y] = device.linears([OPS.Product(one, weight, act=name)])
    result: F32 = y.reshape(-1)
    return result


def points() -> F32:
    """Every magnitude from 2^-20 to 2^6 and a uniform grid where the functions bend."""
    rng = np.random.default_rng(12)
    logarithmic = np.exp2(rng.uniform(-20, 6.3, 100_000))
    uniform = rng.uniform(-16, 16, 100_000)
    x = np.concatenate([logarithmic, -logarithmic, uniform, [0.0, 0.625, -0.625]])
    return x[np.abs(x) < 80].astype(np.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(target: Target, name: str) -> None:
    x = np.ascontiguousarray(points()[:: 97 if target.on_shim else 1])
    y = apply(target, name, x).astype(np.float64)
    expected: F64 = oracle.activation(name, x.astype(np.float64))
    error = np.abs(y - expected)
    if name in ABSOLUTE:
        assert error.max() <= ABSOLUTE[name]
        return
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    worst = np.argmax(error / ulp)
    assert error[worst] <= ULPS[name] * ulp[worst], f"{error[worst] / ulp[worst]} ulp at {x[worst]}"


LIMITS = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "silu": (0.0, np.inf),
    "relu_squared": (0.0, np.inf),
    "exp_neg_exp": (1.0, 0.0),
    "decay7": (1.0, np.exp(-np.exp(-0.5))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_limits(target: Target, name: str) -> None:
    """Far out and at infinity nothing overflows; NaN goes through."""
    x = np.array([-np.inf, -3e38, -1e4, np.inf, 3e38, 1e4, np.nan], np.float32)
    y = apply(target, name, x)
    low, high = LIMITS[name]
    np.testing.assert_allclose(y[:3], low, rtol=1e-6, atol=1e-30)
    if np.isfinite(high):
        np.testing.assert_allclose(y[3:6], high, rtol=1e-6)
    else:
        assert y[3] == np.inf
        assert y[5] == {"silu": 1e4, "relu_squared": 1e8}[name]
    assert np.isnan(y[6])
