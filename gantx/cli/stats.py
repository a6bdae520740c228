"""`gantx stats`: write the reference statistics of a set of real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gantx.cli.options import Channels, Device, require_file, require_unused
from gantx.cli.path_arguments import file_path, path_or_name
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.atomic import require_folder


def stats(
    data: Annotated[
        str,
        typer.Argument(parser=path_or_name, help="Folder, zip or archive of images, or a known data set."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=file_path, help="The .safetensors file to write.")
    ],
    resolution: Annotated[
        int,
        typer.Option(
            min=4, max=2048, help="Width of the generator's images in pixels; real ones are resized to it."
        ),
    ],
    ratio: Annotated[
        float, typer.Option(min=0, max=100, help="Height / width of the images; data.ratio of the generator.")
    ] = 1.0,
    channels: Channels = None,
    protocol: Annotated[str, typer.Option(help="The protocol of the later evaluation.")] = "clean-50k",
    features: Annotated[
        str, typer.Option(parser=path_or_name, help="inception, random, or an .onnx file.")
    ] = "inception",
    weights: Annotated[
        Path | None, typer.Option(parser=file_path, help="File of the Inception weights.")
    ] = None,
    allow_unverified_weights: Annotated[
        bool, typer.Option("--allow-unverified-weights", help="Accept weights of any digest.")
    ] = False,
    split: Annotated[
        Literal["train", "test"] | None, typer.Option(help="train or test; the protocol's by default.")
    ] = None,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="The generator was trained with mirrored images.")
    ] = False,
    moments: Annotated[
        bool, typer.Option("--moments", help="Store only mean and covariance: a small file, for FID only.")
    ] = False,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all free cores).")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an existing file.")] = False,
) -> None:
    """Compute reference statistics of real images, to score generators without the images.

    Example:

      gantx stats ./cifar --resolution 32 -o cifar.stats.safetensors
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"cannot write {output}: statistics are a .safetensors file")
    if not ratio > 0:
        raise UsageError(f"ratio {ratio:g}: give height / width, above 0")
    require_unused(output, force)
    require_folder(output)
    require_file(weights, "file of Inception weights")
    from gantx.config.schema import DataConfig
    from gantx.data.sources import require_source
    from gantx.evaluation.protocols import named
    from gantx.evaluation.targets import require_features

    named(protocol)
    require_features(features, weights)
    require_source(data)

    load_torch()
    from gantx.evaluation import reference
    from gantx.evaluation.request import Request, statistics
    from gantx.runtime import devices

    request = Request(
        metrics=("fid",),
        protocol=protocol,
        features=features,
        weights=weights,
        allow_unverified=allow_unverified_weights,
        split=split,
        device=devices.pick_device(device),
    )
    with StatusDisplay() as status:
        status.log(devices.use_threads(threads or "auto"))
        found = statistics(
            DataConfig.model_validate(
                {"source": data, "resolution": resolution, "ratio": ratio, "channels": channels or 3}
            ),
            request,
            mirrored=mirrored,
            log=status.log,
            progress=status.show,
        )
        reference.write(output, found, with_features=not moments)
    print(output)
