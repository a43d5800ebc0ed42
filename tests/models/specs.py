"""Random checkpoints that the model tests run: every version, awkward sizes."""

from __future__ import annotations

from reference.random_weights import Spec

# Head sizes 8 to 128, one layer, odd vocabularies, C not a multiple of 8 or 16, F smaller than C.
SPECS = [
    Spec("1"),
    Spec("1", loud_keys=True, seed=3),
    Spec("1", n_layer=1, n_embd=15, head_size=5, n_vocab=19, dim_ffn=11, ctx_len=23, seed=1),
    Spec("1", n_layer=3, n_embd=96, head_size=32, head_qk=256, ctx_len=60, seed=2),
    Spec("2", loud_keys=True, seed=2),
    Spec("2", n_layer=3, head_qk=12),
    Spec("2", n_embd=27, n_vocab=31, dim_ffn=50, ffn_pre=True, seed=1),
    Spec("3", loud_keys=True, head_qk=4, seed=3),
    Spec("3"),
    Spec("3", n_embd=20, n_vocab=11, head_qk=7, ctx_len=33, seed=1),
    Spec("3", n_layer=3, ffn_pre=True, head_qk=256, seed=2),
    Spec("4", head_qk=9, ctx_len=50, seed=4),
    Spec("4", ffn_pre=True, mish_glu=True, n_embd=44, dim_ffn=61, seed=5),
    Spec("4", softmax_att=True, n_embd=80, ctx_len=50, seed=6),
    Spec("4", softmax_att=True, mish_glu=True, n_embd=16, head_qk=5, ctx_len=29, seed=7),
    Spec("4a", n_layer=3, tiny_layer=1),
    Spec("4a", n_layer=1, n_embd=39, tiny_layer=0, seed=1),
    Spec("4"),
    Spec("4", n_layer=1, n_embd=7, n_vocab=11, dim_ffn=5, seed=1),
    Spec("4", n_layer=3, n_embd=36, n_vocab=101, dim_ffn=130, seed=2),
    Spec("4", ffn_pre=True, seed=3),
    Spec("5.0", faaaa=False),
    Spec("5.0", n_embd=48, head_size=24, n_vocab=65, seed=1),
    Spec("5.1", faaaa=True, n_layer=1, n_embd=24, seed=2),
    Spec("5.1", faaaa=False, n_embd=64, head_size=16, dim_ffn=33, seed=3),
    Spec("5.2", n_layer=1, n_embd=20, head_size=10, n_vocab=13, seed=4),
    Spec("5.2", n_embd=256, head_size=128, seed=5),
    Spec("6.0"),
    Spec("6.0", n_layer=1, n_embd=36, head_size=12, n_vocab=67, ranks={"m": 3, "w": 1}, seed=1),
    Spec("6.0", n_embd=64, head_size=32, time_state=True, seed=2),
    Spec("6.0", n_embd=128, head_size=128, dim_ffn=96, ranks={"m": 16, "w": 20}, seed=3),
    Spec("6.0a", ranks={"m": 5, "w": 7, "g": 11}),
    Spec("6.0a", n_layer=1, n_embd=30, head_size=10, seed=1),
    Spec("6.0b", n_layer=3, n_embd=48, head_size=16),
    Spec("6.0c", n_embd=40, head_size=8, ranks={"m": 3, "w": 4}, seed=1),
    Spec("7.0"),
    Spec("7.0", n_layer=1, n_embd=9, head_size=9, n_vocab=5, dim_ffn=7, seed=1),
    Spec(
        "7.0", n_layer=3, n_embd=96, head_size=48, ranks={"w": 1, "a": 17, "v": 33, "g": 5}, seed=2
    ),
    Spec("7.0", n_embd=128, head_size=128, value_lora_in_block_0=True, seed=3),
    Spec("7.0", n_embd=64, head_size=64, n_vocab=1000, dim_ffn=260, seed=4),
    Spec("7.0", n_embd=48, head_size=16, time_state=True, seed=5),
    Spec("7.0a", n_layer=3, n_embd=48, head_size=16),
    Spec("7.0a", n_layer=1, n_embd=24, head_size=8, n_vocab=13, dim_ffn=37, seed=1),
]
