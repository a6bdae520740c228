"""Stops commands other than `train` at random moments; nothing unfinished may stay.

    PYTHONPATH=.:tests python -m helpers.command_storm FOLDER --stops 50 --seed 1 [--only "sample png"]

A parent that has imported everything forks each command. After a stop by a signal nothing may lie in the
output folder, in the cache or among the system's temporary files but what a complete command leaves; what a
SIGKILL leaves has to be gone after the same command ran to its end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.exported_networks import save
from helpers.kill_storm import finished, forked

KINDS = {"KILL": -9, "TERM": 75, "INT": 130, "HUP": 75}


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands that take a while, by name; `OUT` stands for the folder they write to."""
    model, images, large = (str(folder / name) for name in ("run", "images", "large"))
    random_features = ["--features", "random"]
    return {
        "sample png": ["sample", model, "-n", "1000", "--grid", "40x25", "-o", "OUT/g.png"],
        "sample npy": ["sample", model, "-n", "1000", "-o", "OUT/g.npy"],
        "sample zip": ["sample", model, "-n", "500", "-o", "OUT/g.zip"],
        "export hub": ["export", model, "-o", "OUT/hub", "--format", "hf"],
        "export pt2": ["export", model, "-o", "OUT/m.pt2"],
        "preparation": ["stats", large, "--resolution", "8", *random_features, "-o", "OUT/p.safetensors"],
        "stats": ["stats", images, "--resolution", "8", *random_features, "-o", "OUT/s.safetensors"],
        "eval": ["eval", model, "--data", images, *random_features, "--num", "200", "--no-intervals"],
    }


def files(*folders: Path) -> set[str]:
    """All files and folders below some folders."""
    return {str(path) for folder in folders for path in folder.rglob("*")}


def pictures(folder: Path) -> dict[str, bytes]:
    """The content of the pictures and arrays in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("g.*")}


def storm(folder: Path, stops: int, seed: int, only: Sequence[str] = ()) -> Counter[str]:
    """Stop each command, or those in `only`, `stops` times; returns counts of kinds and codes."""
    rng = random.Random(seed)
    pixels = np.random.default_rng(seed)
    for name, side in ("images", 24), ("large", 160):
        (folder / name).mkdir(parents=True)
        for number in range(200):
            image = Image.fromarray(pixels.integers(0, 256, (side, side, 3), np.uint8))
            image.save(folder / name / f"{number:03d}.png")
    save(folder / "run", "transgan")
    out, cache, scratch, log = (folder / name for name in ("out", "cache", "tmp", "output.txt"))
    os.environ |= {"GANTX_CACHE": str(cache), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    counts: Counter[str] = Counter()
    for name, arguments in commands(folder).items():
        if only and name not in only:
            continue
        command = ["gantx", *(text.replace("OUT", str(out)) for text in arguments)]

        def fresh() -> None:
            for path in (out, cache, scratch):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()

        fresh()
        began = time.monotonic()
        code = finished(forked(command, log), 600)
        length = time.monotonic() - began
        assert code == 0, f"{name} ended with {code}: {log.read_text()[-2000:]}"
        complete, made = files(out, cache, scratch), pictures(out)
        fresh()
        stopped = 0
        while stopped < stops:
            kind = rng.choice(list(KINDS))
            child = forked(command, log)
            code = finished(child, length * rng.random())
            if code is None:
                os.kill(child, getattr(signal, f"SIG{kind}"))
                code = finished(child, 300)  # imports end first, which takes long on a busy machine
                assert code in (KINDS[kind], 0), (
                    f"{name}, {kind}: ended with {code}: {log.read_text()[-2000:]}"
                )
                stopped += 1
                counts[f"{kind} {code}"] += 1
                if kind == "KILL":
                    for path in out.glob("*"):
                        if path.is_file() and not path.name.startswith("."):
                            path.unlink()
                        elif not path.name.startswith("."):
                            shutil.rmtree(path)
                    code = finished(forked(command, log), 600)
                    assert code == 0, f"{name} after a kill ended with {code}: {log.read_text()[-2000:]}"
                    assert pictures(out) == made, f"{name} after a kill has other images"
            else:
                kind = "end"
            left = files(out, cache, scratch) - complete
            assert not left, f"{name}, {kind}, {code}: left {sorted(left)}"
            assert "Traceback" not in log.read_text(), log.read_text()[-2000:]
            if rng.random() < 0.5:
                fresh()
            else:
                shutil.rmtree(out)
                out.mkdir()
        print(name, f"{length:.1f} s", flush=True)
    return counts


def main() -> None:
    """Run the storm that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stops", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[])
    wanted = parser.parse_args()
    # Imported, but not used yet: threads would not survive a fork.
    import gantx.api
    import gantx.cli
    import gantx.evaluation.request
    import gantx.exporting.export  # noqa: F401

    for what, count in sorted(storm(wanted.folder, wanted.stops, wanted.seed, wanted.only).items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    main()
