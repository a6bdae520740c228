"""How often a model conditioned on the classes of `shapes` shows the class that was asked of it.

    python benchmarks/class_accuracy.py runs/0001-transgan-tiny-shapes -n 100

Generates N images of each class with seeds 0 to N-1 and classifies them with the shapes classifier. Shares
are of the confident images: those whose kind and colour can be classified (see `gantx eval --metric modes`).
"""

import argparse
from pathlib import Path

import torch

import gantx
from gantx.data.shapes import CLASS_NAMES, COLOURS, KINDS
from gantx.evaluation.shapes_classifier import MODES, THRESHOLD, ShapesClassifier


def shares(path: Path, count: int) -> list[tuple[int, int, int, int]]:
    """For each class: confident images, those of the class, of its kind, of its colour."""
    model, classifier = gantx.load(path), ShapesClassifier(torch.device("cpu"))
    rows = []
    for label in range(MODES):
        probabilities = classifier(model.sample(count, label=label))  # [N, 18]
        share = probabilities / probabilities.sum(1, keepdim=True)
        shown = share.argmax(1)[share.amax(1) > THRESHOLD]
        kinds, colours = shown // len(COLOURS), shown % len(COLOURS)
        rows.append(
            (
                len(shown),
                int((shown == label).sum()),
                int((kinds == label // len(COLOURS)).sum()),
                int((colours == label % len(COLOURS)).sum()),
            )
        )
    return rows


def main() -> None:
    """Print a line for each class, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder or a checkpoint")
    parser.add_argument("-n", type=int, default=100, help="images of each class")
    options = parser.parse_args()
    assert len(CLASS_NAMES) == len(KINDS) * len(COLOURS) == MODES
    rows = shares(options.model, options.n)
    print(f"{'class':18}{'confident':>10}{'as asked':>10}{'kind':>8}{'colour':>8}")
    total = tuple(map(sum, zip(*rows, strict=True)))
    for name, row in [*zip(CLASS_NAMES, rows, strict=True), ("all", total)]:
        images = options.n * (MODES if name == "all" else 1)
        parts = [f"{part / max(row[0], 1):.2f}" for part in row[1:]]
        print(f"{name:18}{row[0] / images:>10.2f}{parts[0]:>10}{parts[1]:>8}{parts[2]:>8}")


if __name__ == "__main__":
    main()
