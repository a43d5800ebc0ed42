"""Several questions about one document, which is read once.

    python examples/document_questions.py MODEL DOCUMENT.txt "First question?" "Second question?"

The state after the document has a fixed size, whatever the document's length. Each question starts
from a copy of it; the time that saves is measured and printed.
"""

from __future__ import annotations

import argparse
import time

import wkv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("document")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--tokenizer", default="world", choices=("world", "bytes"))
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--cache", metavar="DIRECTORY", help="keep states here between runs")
    parser.add_argument("--cache-dtype", default="fp32", choices=("fp32", "fp16", "int8"))
    arguments = parser.parse_args()

    model = wkv.Model.load(arguments.model)
    world = arguments.tokenizer == "world"
    tokenizer = wkv.Tokenizer.world() if world else wkv.Tokenizer.bytes()
    cache = wkv.PrefixCache(model, directory=arguments.cache, dtype=arguments.cache_dtype)
    with open(arguments.document, encoding="utf-8") as file:
        document = tokenizer.encode(f"{file.read().strip()}\n\n")

    start = time.perf_counter()
    state, known = cache.get(document)
    if known < len(document):
        model.forward(document[known:], state, logits="none")
        cache.put(document, state)
    reading = time.perf_counter() - start
    print(f"{len(document)} tokens, {known} of them known: {reading:.2f} s")
    print(f"{cache.stats.nbytes} bytes of state stand for the document")

    answering = 0.0
    for question in arguments.questions:
        start = time.perf_counter()
        state, known = cache.get(document)
        answer = wkv.generate(
            model,
            tokenizer,
            f"Question: {question}\n\nAnswer:",
            max_tokens=arguments.max_tokens,
            sampling=wkv.Sampling(temperature=0),
            stop=["\n\n"],
            state=state,
        )
        text = "".join(answer).strip()
        seconds = time.perf_counter() - start
        answering += seconds
        print(f"\n{question}\n{text}\n({seconds:.2f} s; {known} tokens not read again)")

    count = len(arguments.questions)
    print(
        f"\n{count} questions: {reading + answering:.2f} s; {count * reading + answering:.2f} s "
        "if each had read the document"
    )


if __name__ == "__main__":
    main()
