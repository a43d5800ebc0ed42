"""Times wkv beside other runtimes on the same random weights, interleaved, and prints ratios.

    pip install 'wkv[bench]' llama-cpp-python
    python bench/peers.py --model v7:24x1024 --work /tmp/peers \
        --llama-source llama_cpp_python-0.3.36/vendor/llama.cpp [--json out.json]

A contestant is RUNTIME:TYPE, such as wkv:bf16, rwkv:fp32, llama.cpp:f16. Each round runs every one
of them in a process of its own, in rotating order, so that a change of the machine's mood hits all.
Ratios are taken within a round; the median and the spread over the rounds are printed.
--llama-source is an unpacked llama.cpp, of which the converter of Hugging Face files is used (it
needs the packages of its requirements); without it llama.cpp is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 2.0  # a timed segment lasts at least this long
#: Who is compared with whom: equal bits, and the `rwkv` package's best CPU form against ours.
PAIRS = (
    ("wkv:bf16", "llama.cpp:f16"),
    ("wkv:fp16", "llama.cpp:f16"),
    ("wkv:int8", "llama.cpp:q8_0"),
    ("wkv:int4", "llama.cpp:q4_0"),
    ("wkv:bf16", "rwkv:fp32"),
    ("wkv:fp32", "rwkv:fp32"),
)

Forward = Callable[[list[int]], object]


def wkv_forward(path: Path, dtype: str, threads: int) -> Forward:
    import wkv

    model = wkv.Model.load(path, device="cpu", dtype=dtype, threads=threads)  # type: ignore[arg-type]
    state = model.new_state()
    return lambda tokens: model.forward(tokens, state)


def rwkv_forward(path: Path, dtype: str, threads: int) -> Forward:
    os.environ |= {
        "RWKV_JIT_ON": "1",
        "RWKV_CUDA_ON": "0",
        "RWKV_V7_ON": str(int("v7" in path.name)),
    }
    import torch

    torch.set_num_threads(threads)
    from rwkv.model import RWKV

    model = RWKV(model=str(path.with_suffix("")), strategy=f"cpu {dtype}")
    state: Any = None

    def forward(tokens: list[int]) -> object:
        nonlocal state
        logits, state = model.forward(tokens, state)
        return logits

    return forward


def llama_forward(path: Path, dtype: str, threads: int) -> Forward:
    import llama_cpp as llama

    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = 1 << 20
    context_params.n_batch = context_params.n_ubatch = 256
    context_params.n_threads = context_params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, context_params)
    if context is None:
        raise RuntimeError(f"llama.cpp does not open {path} as {dtype}")

    def forward(tokens: list[int]) -> object:
        batch = llama.llama_batch_get_one((llama.llama_token * len(tokens))(*tokens), len(tokens))
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return llama.llama_get_logits(context)[0]

    return forward


RUNTIMES = {"wkv": wkv_forward, "rwkv": rwkv_forward, "llama.cpp": llama_forward}


def work(contestant: str, path: Path, threads: int, prompt: int) -> dict[str, float]:
    """Tokens per second of one contestant, in this process."""
    runtime, dtype = contestant.split(":")
    forward = RUNTIMES[runtime](path, dtype, threads)
    ids = [(i * 7919) % 50000 for i in range(prompt)]
    forward(ids[:16])  # pages, JIT

    def rate(tokens: list[int]) -> float:
        done = 0
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS or done < 2 * len(tokens):
            forward(tokens)
            done += len(tokens)
        return done / seconds

    forward(ids[:1])
    decode = rate(ids[:1])
    forward(ids)
    return {"decode": decode, "prefill": rate(ids)}


def prepare(spec: str, contestants: list[str], folder: Path, llama: Path | None) -> dict[str, Path]:
    """The file of every contestant that can run, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pth = folder / (spec.replace(":", "-") + ".pth")
    if not pth.exists():
        subprocess.run([sys.executable, HERE / "random_checkpoint.py", spec, pth], check=True)
    files = {c: pth for c in contestants if not c.startswith("llama.cpp")}
    if llama is None:
        return files
    f16 = pth.with_name(pth.stem + "-f16.gguf")
    if not f16.exists():
        hf = pth.with_suffix("")
        tool = HERE / "random_checkpoint.py"
        subprocess.run([sys.executable, tool, "--hugging-face", pth, hf], check=True)
        vocabulary = next(Path(sys.prefix).rglob("rwkv_vocab_v20230424.txt"))
        (hf / vocabulary.name).write_bytes(vocabulary.read_bytes())
        convert = [sys.executable, llama / "convert_hf_to_gguf.py", hf, "--outtype", "f16"]
        subprocess.run([*convert, "--outfile", f16], check=True)
    for contestant in contestants:
        if not contestant.startswith("llama.cpp"):
            continue
        kind = contestant.split(":")[1]
        file = f16.with_name(f16.name.replace("f16", kind))
        if not file.exists():
            import llama_cpp

            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = {"q8_0": 7, "q4_0": 2}[kind]
            if llama_cpp.llama_model_quantize(str(f16).encode(), str(file).encode(), params) != 0:
                raise RuntimeError(f"cannot quantise {f16} to {kind}")
        files[contestant] = file
    return files


def run_rounds(
    files: dict[str, Path], threads: int, prompt: int, rounds: int
) -> list[dict[str, dict[str, float]]]:
    """Round by round, tokens per second of each contestant; those that fail are dropped."""
    results: list[dict[str, dict[str, float]]] = []
    alive = list(files)
    for number in range(rounds):
        order = alive[number % len(alive) :] + alive[: number % len(alive)]
        result: dict[str, dict[str, float]] = {}
        for contestant in order:
            command = [sys.executable, __file__, "--worker", contestant, "--file"]
            command += [str(files[contestant]), "--threads", str(threads), "--prompt", str(prompt)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
                print(f"{contestant} is left out: {reason[0]}", file=sys.stderr)
                alive.remove(contestant)
                continue
            result[contestant] = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    return results


def spread(values: list[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:9.{digits}f}  ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(results: list[dict[str, dict[str, float]]]) -> None:
    contestants = [c for c in results[-1] if all(c in r for r in results)]
    for mode in ("decode", "prefill"):
        print(f"\n{mode}, tokens per second: median (least to most)")
        for c in sorted(contestants):
            print(f"  {c:16} {spread([r[c][mode] for r in results], 2)}")
        for ours, theirs in PAIRS:
            if ours in contestants and theirs in contestants:
                ratios = [r[ours][mode] / r[theirs][mode] for r in results]
                print(f"  {ours} / {theirs:20} {spread(ratios, 2)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="wkv beside other runtimes.")
    parser.add_argument(
        "--model", default="v7:24x1024", help="VERSION:LAYERSxCHANNELS[:VOCABULARY]"
    )
    parser.add_argument(
        "--contestants", default=",".join(dict.fromkeys(c for pair in PAIRS for c in pair))
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prefill")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="where files go")
    parser.add_argument("--llama-source", type=Path)
    parser.add_argument("--json", type=Path, help="every figure of every round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        result = work(arguments.worker, arguments.file, arguments.threads, arguments.prompt)
        print(json.dumps(result))
        return 0
    contestants = arguments.contestants.split(",")
    files = prepare(arguments.model, contestants, arguments.work, arguments.llama_source)
    results = run_rounds(files, arguments.threads, arguments.prompt, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{arguments.model}, {arguments.threads} threads, {arguments.rounds} rounds")
    report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
