"""A result of an evaluation with the given scores."""

from gantx.evaluation.results import Result

PROTOCOL = {
    "extractor": "inception",
    "weights_sha256": "f58c" * 16,
    "resize": "clean",
    "n_gen": 10000,
    "n_ref": 50000,
    "seed": 0,
    "truncation": 1.0,
    "neighbours": {"k": 3, "images": (10000, 10000)},
}


def result_of(*scores, protocol=PROTOCOL, **changes):
    given = {
        "checkpoint": {"path": "runs/0001/x.safetensors", "kimg": 25},
        "warnings": ("fewer than 50,000 images",),
        "timing": {"measure_seconds": 1.5},
        "versions": {"gantx": "0.1.0"},
    }
    return Result(scores=scores, protocol=protocol, **given | changes)
