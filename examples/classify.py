"""Text classification: embeddings from a language model, a linear classifier on top.

    python examples/classify.py MODEL TEXTS.tsv      (lines of label, tab, text)

Needs scikit-learn. Half of the lines train, the other half test.
"""

from __future__ import annotations

import argparse

import wkv
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from wkv.sklearn import Embedder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--tokenizer", default="world", choices=("world", "bytes"))
    parser.add_argument("--part", action="append", help="see docs/embeddings.md")
    arguments = parser.parse_args()

    with open(arguments.texts, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t", 1) for line in file if "\t" in line]
    labels = [label for label, _ in rows]
    texts = [text for _, text in rows]
    world = arguments.tokenizer == "world"
    tokenizer = wkv.Tokenizer.world() if world else wkv.Tokenizer.bytes()

    embedder = Embedder(
        wkv.Model.load(arguments.model), tokenizer, parts=arguments.part or "hidden"
    )
    classifier = make_pipeline(embedder, LogisticRegression(max_iter=1000))
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, test_size=0.5, random_state=1, stratify=labels
    )
    classifier.fit(train, train_labels)
    print(classification_report(test_labels, classifier.predict(test)))


if __name__ == "__main__":
    main()
