"""`gantx data`: look at a set of images before training on it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gantx.cli.help import Command, Group
from gantx.cli.options import AsJson, Channels, ConfigFiles, Force, require_unused
from gantx.cli.path_arguments import file_path, path_or_name
from gantx.cli.status import StatusDisplay
from gantx.errors import DataError, UsageError
from gantx.io.atomic import require_folder
from gantx.io.escaping import printable

if TYPE_CHECKING:
    from gantx.data.census import Census

app = typer.Typer(
    help="Check a set of images, and see what a network would see.", cls=Group, no_args_is_help=True
)

Images = Annotated[
    str, typer.Argument(parser=path_or_name, help="Folder, zip or archive of images, or a known data set.")
]
Ratio = Annotated[float, typer.Option(min=0, max=100, help="Height / width of the images: data.ratio.")]
Split = Annotated[Literal["train", "test"], typer.Option(help="train or test.")]


@app.command("check", cls=Command)
def check(
    data: Images,
    resolution: Annotated[
        int | None, typer.Option(min=4, max=2048, help="Width of the generator's images in pixels.")
    ] = None,
    ratio: Ratio = 1.0,
    channels: Channels = None,
    split: Split = "train",
    as_json: AsJson = False,
) -> None:
    """Decode every image and report sizes, classes, duplicates, and what cannot be used.

    Exit code 4: some images are unreadable or smaller than --resolution, so that training would refuse them.

    Examples:

      gantx data check ./cats

      gantx data check ./cats --resolution 64 --json
    """
    if not ratio > 0:
        raise UsageError(f"--ratio {ratio:g}: give height / width, above 0")
    from gantx.config.schema import DataConfig
    from gantx.data.census import examine

    section = DataConfig(source=data, ratio=ratio, split=split, resolution=resolution or 32)
    with StatusDisplay() as status:
        census = examine(
            section,
            resolution=resolution,
            progress=partial(status.show, "reading images"),
        )
    if as_json:
        found = {**dataclasses.asdict(census), "usable": census.usable}
        print(json.dumps({"schema": "gantx.data/1", **found}))
    else:
        for label, value in _lines(census, channels or 3):
            print(printable(f"{label:<13}{value}"))
    if unusable := census.images - census.usable:
        raise DataError(
            f"{unusable:,} of {census.images:,} images in {census.location} cannot be used: repair or remove "
            "them, or train with --on-bad-image skip"
        )


def _lines(census: Census, channels: int) -> list[tuple[str, str]]:
    """Labels and values of the report; what there is nothing of is left out."""
    lines = [("location", census.location), ("images", f"{census.images:,}")]
    lines += [("note", note) for note in census.notes]
    if census.classes:
        most = sorted(census.classes.items(), key=lambda item: -item[1])
        lines.append(("classes", f"{len(most):,}: " + _few([f"{name} {count:,}" for name, count in most], 8)))
    if census.sizes:
        lines.append(("sizes", _sizes(census)))
    if census.largest:
        lines.append(("resolution", f"up to {census.largest} without enlarging (99 % of the images)"))
    for label, count, meaning in (
        ("cropped", census.cropped, "of another shape: the centre is used"),
        ("rotated", census.rotated, "turned by their EXIF orientation"),
        ("transparent", census.alpha, _TRANSPARENT[channels]),
        ("grey", census.grey, _grey(census, channels)),
    ):
        if count:
            lines.append((label, f"{count:,} {meaning}"))
    if census.small:
        lines.append(
            ("too small", f"{len(census.small):,} below {census.resolution} px: {_few(census.small, 3)}")
        )
    if census.unreadable:
        named = [f"{name}: {reason}" for name, reason in census.unreadable]
        lines.append(("unreadable", f"{len(named):,}: {_few(named, 3, '; ')}"))
    if census.duplicates:
        copies = sum(len(group) - 1 for group in census.duplicates)
        named = [" = ".join(group[:3]) for group in census.duplicates]
        lines.append(("duplicates", f"{copies:,} copies of other images: {_few(named, 3, '; ')}"))
    if census.near:
        named = [f"{first} ~ {second}" for first, second, _ in census.near]
        among = f" among the first {census.compared:,}" if census.compared < census.usable else ""
        lines.append(("look alike", f"{len(named):,} pairs{among}: {_few(named, 3, '; ')}"))
    lines.append(("usable", f"{census.usable:,}{_few_images(census.usable)}"))
    return lines


# What becomes of transparency, by `data.channels`.
_TRANSPARENT = {
    1: "composited over white",
    3: "composited over white; data.channels=4 keeps the transparency",
    4: "kept as the fourth channel",
}


def _grey(census: Census, channels: int) -> str:
    """What becomes of images without colours."""
    coloured = census.images - len(census.unreadable) - census.grey
    if channels == 1:
        return f"without colours; {coloured:,} others become grey" if coloured else "without colours"
    if coloured:
        return "without colours: repeated in three channels"
    return "without colours: every image is grey, and data.channels=1 trains on one channel"


def _sizes(census: Census) -> str:
    common = _few([f"{width}×{height} ({count:,})" for width, height, count in census.sizes[:4]], 4)
    if len(census.sizes) <= 4:
        return common
    widths, heights, _ = zip(*census.sizes, strict=True)
    return (
        f"{len(widths):,}, {min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high; "
        f"most often {common}"
    )


def _few_images(count: int) -> str:
    from gantx.data.prepare import FEW

    return f" (a GAN learns little from fewer than {FEW} images)" if count < FEW else ""


def _few(parts: Sequence[str], most: int, separator: str = ", ") -> str:
    more = f"{separator}… ({len(parts) - most:,} more)" if len(parts) > most else ""
    return separator.join(parts[:most]) + more


@app.command("preview", cls=Command)
def preview(
    data: Images,
    output: Annotated[Path, typer.Option("--output", "-o", parser=file_path, help="The .png file to write.")],
    preset: Annotated[str | None, typer.Option(help="A recipe from `gantx presets ls`.")] = None,
    config: ConfigFiles = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, dotted.")
    ] = None,
    channels: Channels = None,
    count: Annotated[
        int | None, typer.Option("-n", min=1, max=1024, help="Number of images (32, or all of fewer).")
    ] = None,
    force: Force = False,
) -> None:
    """Write a sheet of real images as a run would prepare them, and below them as D sees them, augmented.

    Examples:

      gantx data preview shapes --preset vitgan-tiny -o seen.png
    """
    if output.suffix.lower() != ".png":
        raise UsageError(f"cannot write {output}: a preview is a .png file")
    require_unused(output, force)
    require_folder(output)
    if preset is None and not config:
        raise UsageError("no recipe: add --preset NAME (`gantx presets ls` lists them) or --config FILE")
    from gantx.config import presets

    flags = {"data.source": data} | ({} if channels is None else {"data.channels": channels})
    settings = presets.load(preset, config or [], overrides or [], flags)
    from gantx.training.data_preview import write_preview

    with StatusDisplay() as status:
        write_preview(
            settings, output, count, log=status.log, progress=partial(status.show, "preparing images")
        )
    print(output)
