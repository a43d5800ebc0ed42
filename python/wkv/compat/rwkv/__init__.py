"""The ``rwkv`` package 0.8.32, on wkv: see docs/compat.md."""
