"""Weights for publication: the averaged generator alone, or a folder for the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.data.crop import size_of
from gantx.errors import GantxError, UsageError
from gantx.evaluation import reports, results
from gantx.evaluation.results import Result
from gantx.exporting.classes import describe as describe_classes
from gantx.exporting.request import UNSTATED
from gantx.generation import sampling
from gantx.generation.labels import drawn_labels
from gantx.generation.provenance import describe
from gantx.io import imaging
from gantx.io.escaping import markdown, markdown_code
from gantx.models.interfaces import Generator
from gantx.version import __version__

WEIGHTS = "model.safetensors"
_SHOWN = 16  # number of images in the picture on the card
_LISTED = 100  # classes in the table on the card
_TASK = "unconditional-image-generation"  # the Hub's name of the task


def write_weights(
    path: Path, generator: Generator, header: Header, license_: str, scores: Sequence[Result] = ()
) -> None:
    """Write a checkpoint that contains only the averaged generator; every command accepts it.

    Of the paths of the training images and of `initialization` only the last component is stored. Licence and
    scores are stored too, so that an export of this file has them.
    """
    config = header.config
    if config.data.source is not None:
        name = re.split(r"[\\/]", config.data.source.rstrip("\\/"))[-1]
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": name})})
    if config.initialization is not None:
        name = re.split(r"[\\/]", config.initialization.checkpoint.rstrip("\\/"))[-1]
        origin = config.initialization.model_copy(update={"checkpoint": name})
        config = config.model_copy(update={"initialization": origin})
    data = {key: value for key, value in header.data.items() if key != "scores"} | {"license": license_}
    if scores:
        data["scores"] = [_portable(result).to_document() for result in scores]
    checkpoint.write(
        path,
        {f"generator_ema.{name}": tensor for name, tensor in generator.state_dict().items()},
        config=config,
        progress={"images": header.images},
        data=data,
    )


def _portable(result: Result) -> Result:
    """A result without what belongs to the machine on which it was measured."""
    weights = {key: value for key, value in (result.checkpoint or {}).items() if key != "path"}
    return replace(result, checkpoint=weights, warnings=(), timing={}, verdicts=())


def write_folder(
    folder: Path, generator: Generator, header: Header, license_: str, scores: Sequence[Result]
) -> None:
    """Write weights, configuration, model card and a picture.

    Args:
        folder: an existing folder.
        generator: the averaged generator, on the CPU.
        header: of its checkpoint.
        license_: the Hub's identifier of the weights' licence.
        scores: results of this checkpoint, for the card.
    """
    write_weights(folder / WEIGHTS, generator, header, license_, scores)
    shared = checkpoint.read_header(folder / WEIGHTS)
    about = {
        "library_name": "gantx",
        "gantx_version": __version__,
        "preset": header.config.name,
        "kimg": header.images / 1000,
        "digest": header.digest,
        "license": license_,
        **describe_classes(header.config.conditioning, None),
        "config": shared.config.model_dump(mode="json"),
    }
    write_text(folder / "config.json", json.dumps(about, indent=2) + "\n")
    ratio = header.config.data.ratio
    seeds = range(_SHOWN)
    images = sampling.sample(
        generator,
        seeds,
        batch=_SHOWN,
        device=torch.device("cpu"),
        ratio=ratio,
        labels=drawn_labels(header.config.conditioning, seeds) if generator.classes else None,
    )
    imaging.write_png(
        folder / "samples.png",
        imaging.grid(torch.cat(list(images)), *imaging.grid_shape(_SHOWN)),
        {**describe(header), "gantx:seeds": f"0-{_SHOWN - 1}"},
    )
    write_text(folder / "README.md", card(shared, license_, scores))


def read_scores(paths: Sequence[Path], header: Header) -> list[Result]:
    """Results of `gantx eval` for exactly these weights.

    Args:
        paths: named by the user; empty to take those found in the run's folder or beside the file, and those
            stored in an exported file.
        header: of the checkpoint.

    Raises:
        MissingError: a named file does not exist.
        DataError: a file is not a result.
        UsageError: a result belongs to other weights.
    """
    named = {path: results.read_result(path) for path in paths}
    for path, result in named.items():
        if _scored(result) != header.digest:
            raise UsageError(
                f"{path} contains the scores of other weights than {header.path}: evaluate this checkpoint"
            )
    if named:
        return list(named.values())
    home = header.path.absolute().parent
    folders = [home, home.parent] if home.name == "checkpoints" else [home]
    found = []
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        try:
            result = results.read_result(path)
        except GantxError:  # some other JSON
            continue
        if _scored(result) == header.digest:
            found.append(result)
    stored = header.data.get("scores", [])
    for document in stored if isinstance(stored, list) else []:
        result = results.parse_result(document, str(header.path))
        known = {each.protocol_hash for each in found}
        if _scored(result) == header.digest and result.protocol_hash not in known:
            found.append(result)
    return found


def card(header: Header, license_: str, scores: Sequence[Result]) -> str:
    """The model card: YAML front matter for the Hub, and Markdown.

    Args:
        header: of the published weights.
        license_: the Hub's identifier of their licence.
        scores: results for these weights.
    """
    config, kimg = header.config, f"{header.images / 1000:g}"
    side, family = config.generator.resolution, config.generator.family
    width, height = size_of(side, config.data.ratio)
    size = f"{width}×{height}" + {1: " grey", 3: "", 4: " RGBA"}[config.data.channels]
    number, name = header.data.get("images"), header.data.get("name", "unknown")
    of = markdown_code(str(name))
    images = f"{number:,} of {of}" if number else of
    length = f"{kimg} thousand real images shown to the discriminator" if header.images else "not recorded"
    classes = describe_classes(config.conditioning, None)
    kinds = f"of {len(classes['classes']):,} classes" if classes else "without classes"
    blocks = [
        f"---\n{yaml.safe_dump(_front_matter(header, license_, scores), sort_keys=False)}---",
        f"# {config.name}, {kimg} kimg" if header.images else f"# {config.name}",
        f"A generator of {size} images {kinds}, of the family `{family}`, for gantx.",
        "![images of the seeds 0 to 15](samples.png)",
        "## Use",
        "```\npip install gantx\ngantx sample . -n 64 -o grid.png\ngantx export . -o model.onnx\n```",
        f"`{WEIGHTS}` contains the averaged generator and its whole configuration; loading it runs no code. "
        "The image of a seed is always the same.",
        *(_of_classes(classes) if classes else ()),
        "## Training",
        f"- recipe: `{config.name}`, complete in `config.json`\n"
        f"- images: {images}\n"
        f"- length: {length}\n"
        f"- digest of the weights: {markdown_code(header.digest)}",
        "## Scores",
        *[_table(result) for result in scores],
    ]
    if not scores:
        blocks.append("None yet: `gantx eval model.safetensors --data IMAGES --metric fid` measures one.")
    blocks += [
        "## Limits",
        "The generator reproduces the distribution of its training images, including their gaps and biases, "
        "and may come close to single ones of them. Compare scores of the same protocol only.",
        "## Licence",
        "Not stated." if license_ == UNSTATED else f"Weights: {markdown(license_)}",
    ]
    return "\n\n".join(blocks) + "\n"


def _of_classes(described: dict[str, Any]) -> list[str]:
    """The part of the card about classes, from what `describe` of them returned."""
    names = described["classes"]
    rows = [f"| {label} | {markdown(name)} |" for label, name in enumerate(names[:_LISTED])]
    if len(names) > _LISTED:
        rows.append(f"| … | {len(names) - _LISTED:,} more in `config.json` |")
    none = described["no_class"]
    without = "" if none is None else f" `none`, the label {none}, stands for no class in particular."
    return [
        "## Classes",
        "By default each seed has its own class, in the proportions of the training images. A class can be "
        f"chosen by its name or number; there are no others than these.{without}",
        "```\ngantx sample . --class 0 -n 64 -o one.png\ngantx sample . --class all -n 8 -o all.png\n```",
        '```python\nimport gantx\n\nimages = gantx.load(".").sample(8, label=0)\n```',
        "An exported `model.onnx` or `model.pt2` has the number as its second input, `label` (int64, one for "
        "each image).",
        "\n".join(["| label | class |", "|---|---|", *rows]),
    ]


def _front_matter(header: Header, license_: str, scores: Sequence[Result]) -> dict[str, Any]:
    classes = isinstance(header.config.conditioning.classes, int)
    matter: dict[str, Any] = {
        "license": license_,
        "library_name": "gantx",
        "pipeline_tag": _TASK,
        "tags": ["gan", header.config.generator.family, *(["class-conditional"] if classes else [])],
    }
    dataset = str(header.data.get("name") or "unknown")
    measured = [
        {
            "task": {"type": _TASK},
            "dataset": {"name": dataset, "type": dataset},
            "metrics": [
                {"type": score.name, "value": score.value, "name": f"{score.name} ({result.protocol_hash})"}
                for score in result.scores
                if score.value is not None
            ],
        }
        for result in scores
    ]
    if measured:
        matter["model-index"] = [{"name": header.config.name, "results": measured}]
    return matter


def _table(result: Result) -> str:
    """One result as Markdown, with its protocol, without gates and the path of its checkpoint."""
    text = reports.markdown(replace(result, verdicts=(), checkpoint=None))
    return text.partition("\n\n")[2].strip()  # all but the heading


def _scored(result: Result) -> str | None:
    """Digest of the weights a result belongs to."""
    return (result.checkpoint or {}).get("sha256")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line endings on every system."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
