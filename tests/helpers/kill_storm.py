"""Stops a training run again and again, at random moments and in every way, and compares what comes of it.

    PYTHONPATH=.:tests python -m helpers.kill_storm FOLDER --stops 500 --seed 1

A parent that has imported everything forks each `gantx train --out RUN --resume auto`, so that a start takes
a tenth of a second instead of three; every tenth is a new process, whose imports can be hit as well. A run
that reaches its end is compared with one that nobody disturbed: weights, metrics, scores and pictures must be
equal bit by bit, and nothing else may lie in its folder or in the cache. Then a new run begins, with an empty
cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from helpers.small_run import SMALL

SETTINGS = [
    *(text for text in SMALL if not text.startswith(("name=", "training.report_kimg", "training.kimg"))),
    "training.kimg=0.12",
    "training.report_kimg=0.02",
    "training.evaluate_every=0.05",
    "evaluation.features=random",
    "evaluation.metrics=[fid,kid]",
    "evaluation.num_during_training=16",
]
KINDS = ("KILL", "TERM", "INT", "INT INT", "HUP", "USR1")
ALLOWED = {
    "KILL": (-9, 0),
    "TERM": (75, 0),
    "INT": (130, 0),
    "INT INT": (130, 0),
    "HUP": (75, 0),
    "USR1": (75, 0),
}
_VOLATILE = ("seconds", "images_per_second", "memory_gb", "evaluation_seconds")


def command(run: Path) -> list[str]:
    """The arguments of the command that starts the run or goes on with it."""
    return [
        *(
            "gantx",
            "train",
            "--config",
            str(run.parent / "empty.yaml"),
            "--data",
            "shapes",
            "--device",
            "cpu",
        ),
        *("--out", str(run), "--resume", "auto", *SETTINGS),
    ]


def forked(arguments: list[str], log: Path) -> int:
    """The id of a child that runs a command; this process has imported what it needs."""
    signals = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        sys.argv = arguments
        from gantx.__main__ import main
        from gantx.runtime.signals import leave_at_once

        leave_at_once()  # as the interpreter's start would: no moment is without a handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    os._exit(code)


def executed(arguments: list[str], log: Path) -> int:
    """The id of a new process that runs a command."""
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=output, stderr=output, start_new_session=True
        ).pid


def finished(child: int, seconds: float) -> int | None:
    """The exit code of a child within some seconds (negative for a signal), or None."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def result_of(run: Path) -> dict[str, str]:
    """Digests of everything a run leaves behind, without times; by name."""
    found = {}
    # A stop writes a checkpoint of its own, and so removes another before the last.
    older = sorted((run / "checkpoints").glob("kimg-*.safetensors"))[:-1]
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or path in older or name in (".lock", "train.log", "command.txt", "env.json"):
            continue
        content = path.read_bytes()
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.decode().splitlines()]
            kept = [{key: line[key] for key in line if key not in _VOLATILE} for line in lines]
            content = json.dumps(kept, indent=1).encode()
        if path.suffix == ".safetensors":
            content = weights_of(content)
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def weights_of(content: bytes) -> bytes:
    """A checkpoint without what depends on time: its names, types, shapes, bytes and configuration."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    progress = json.loads(metadata["progress"])
    kept = [header, metadata["config"], metadata["digests"], progress["images"], progress["iteration"]]
    return json.dumps(kept, sort_keys=True).encode() + content[8 + length :]


def in_cache(cache: Path) -> list[str]:
    """Kinds of what lies in the cache: names without digests."""
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())


COMPARED = 3  # runs, at least: on a busy machine more stops are needed until so many have ended


def storm(folder: Path, stops: int, seed: int, patience: float = 60.0) -> Counter[str]:
    """Stop runs `stops` times or more; counts of kinds and codes; AssertionError at a difference."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.yaml").write_text("name: small\n")
    os.environ["GANTX_CACHE"] = str(folder / "cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    log = folder / "output.txt"
    undisturbed, run, cache = folder / "undisturbed", folder / "run", folder / "cache"
    began = time.monotonic()
    code = finished(forked(command(undisturbed), log), 10 * patience)
    length = time.monotonic() - began
    assert code == 0, f"the undisturbed run ended with {code}: {log.read_text()[-2000:]}"
    wanted, cached = result_of(undisturbed), in_cache(cache)
    counts: Counter[str] = Counter()
    number = 0
    while (stopping := number < stops or counts["compared"] < COMPARED) or run.exists():
        fresh = number % 10 == 9 and stopping
        child = (executed if fresh else forked)(command(run), log)
        if not stopping:  # bring the last run to its end
            code = finished(child, patience)
        else:
            # Early moments as often as late ones: starting up and preparing are over soon.
            moment = rng.choice((0.15, 0.5, 1.0)) * length * rng.random() + (3 * rng.random() if fresh else 0)
            code = finished(child, moment)
        kind = "end"
        if code is None:
            kind = rng.choice(KINDS)
            for position, name in enumerate(kind.split()):
                if position:
                    time.sleep(0.1 * rng.random())
                os.kill(child, getattr(signal, f"SIG{name}"))
            code = finished(child, patience)
            assert code is not None, f"{kind} did not end the run within {patience:g} s"
            # Before the interpreter runs any of gantx, a signal does what it does to every program.
            early = fresh and code == -getattr(signal, f"SIG{kind.split()[0]}")
            assert early or code in ALLOWED[kind], f"{kind} ended with {code}: {log.read_text()[-2000:]}"
            number += 1
        counts[f"{kind} {code}"] += 1
        if kind == "end":
            assert code == 0, f"a run that nobody stopped ended with {code}: {log.read_text()[-2000:]}"
        if code == 0:
            found = result_of(run)
            names = sorted(
                name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
            )
            assert not names, f"after {number} stops these differ from an undisturbed run: {', '.join(names)}"
            assert in_cache(cache) == cached, (
                f"left in the cache: {sorted(set(in_cache(cache)) - set(cached))}"
            )
            counts["compared"] += 1
            shutil.rmtree(run)
            shutil.rmtree(cache)
    return counts


def main() -> None:
    """Run the storm that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stops", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup ignores, new processes would ignore too
    # Imported, but not used yet: threads would not survive a fork.
    import gantx.cli
    import gantx.training.run  # noqa: F401

    for what, count in sorted(storm(wanted.folder, wanted.stops, wanted.seed).items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    main()
