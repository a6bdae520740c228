"""The parts of gpu.sh: smoke, speed, baseline and train. Each ends within its seconds, whatever fails.

    python benchmarks/gpu_parts.py smoke speed --out gpu-results --device cuda

Every command is a process of its own with a limit in time; its output is kept in OUT/logs. What is found goes
to OUT/<part>.jsonl, a line for each command; OUT/kernels receives the source of kernels that failed to
compile; gpu_table.py makes a table of it all.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = next((folder for folder in (ROOT.parent / "shared", ROOT / "shared") if folder.is_dir()), None)
SECONDS = {"smoke": 145, "speed": 140, "baseline": 65, "train": 130}  # together 480
MEASURING = 45  # of the seconds for speed
TINY = ("transgan-tiny", "vitgan-tiny", "ganformer-tiny", "implicit-tiny")  # the last one with classes
# Blocks are all alike: with one of each, a preset compiles in time.
SHALLOW = {
    "transgan-tiny": ["generator.depths=[1,1]", "discriminator.depth=1"],
    "vitgan-tiny": ["generator.depth=1", "discriminator.depth=1"],
    "ganformer-tiny": [
        *("data.resolution=8", "generator.resolution=8", "discriminator.resolution=8"),
        "generator.mapping_layers=3",
    ],
    "implicit-tiny": ["generator.depth=1"],
}
SIDE_64 = ["data.resolution=64", "generator.resolution=64", "discriminator.resolution=64"]
# Row: preset, batch, settings.
PAIRS = {
    "vitgan-cifar10": ("vitgan-cifar10", 128, []),
    "transgan-s": ("transgan-s", 64, []),
    "transgan2-cifar10": ("transgan2-cifar10", 64, []),
    "ganformer-64": ("ganformer-ffhq", 32, SIDE_64),
}
LARGE = {"transgan-xl-64": ("transgan-xl", 64, [])}
SMALL = {  # what stands for them in a smoke test
    "vitgan-cifar10": ("vitgan-tiny", 4, []),
    "transgan-s": ("transgan-tiny", 4, []),
    "transgan2-cifar10": ("transgan-tiny", 4, []),
    "ganformer-64": ("ganformer-tiny", 4, []),
    "transgan-xl-64": ("transgan-tiny", 8, []),
}
NOTEWORTHY = ("is not compiled", "is not replayed")  # what gantx says where an optimisation fails
KERNEL = re.compile(r"\btriton_(?:poi|red|per|tem|for|mm)\w+")


@dataclass
class Run:
    """Where and how everything runs.

    Attributes:
        out: folder of the results.
        device: as gantx names it.
        small: tiny presets and few steps: does it run at all?
        compile: whether anything is compiled.
        settings: more settings for the rows of gantx.
        cifar: the zip of CIFAR-10 images, or None.
        caches: folder of what compiles.
        began: when the part did, by the monotonic clock.
        deadline: when it ends.
    """

    out: Path
    device: str
    small: bool
    compile: bool
    settings: list[str]
    cifar: Path | None
    caches: Path
    began: float = 0.0
    deadline: float = 0.0
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self):
        """Seconds until the part ends."""
        return self.deadline - time.monotonic()

    def log(self, text):
        """Tell how far things are."""
        with self._writing, (self.out / "log.txt").open("a", encoding="utf-8") as log:
            line = f"[{time.monotonic() - self.began:3.0f} s] {text}"
            print(line, file=sys.stderr, flush=True)
            log.write(line + "\n")

    def keep(self, part, **found):
        """Write one line of a part's results."""
        with self._writing, (self.out / f"{part}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def environment(self, share):
        """Of a process that has one of `share` parts of the processor cores."""
        threads = max(2, (os.cpu_count() or 2) // max(1, share))
        return {
            **os.environ,
            "GANTX_DEBUG": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "TORCHINDUCTOR_CACHE_DIR": str(self.caches / "inductor"),
            "TRITON_CACHE_DIR": str(self.caches / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        }


class Process:
    """A command of Python with its output in files.

    Args:
        run: where.
        name: of its files in OUT/logs.
        command: arguments of Python.
        share: how many such processes share the processor cores.
    """

    def __init__(self, run, name, command, share=1):
        logs = run.out / "logs"
        logs.mkdir(exist_ok=True)
        self.printed, self.log = logs / f"{name}.out.txt", logs / f"{name}.txt"
        self._began = time.monotonic()
        with self.printed.open("wb") as printed, self.log.open("wb") as log:
            log.write((" ".join(map(str, command)) + "\n").encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=printed,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=run.environment(share),
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def ended(self):
        """Whether it has."""
        return self._process.poll() is not None

    def send(self, number):
        """Send a signal to it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds, gently=0):
        """Wait for its end, for so many seconds at most: its exit code, None if it had to be stopped.

        Args:
            seconds: that it has.
            gently: seconds that it gets after that to save what it has.
        """
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            pass
        code = None
        if gently:
            os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(gently)
        self.send(signal.SIGKILL)
        self._process.wait()
        return code

    @property
    def seconds(self):
        """Since it began."""
        return round(time.monotonic() - self._began, 1)

    def document(self):
        """The last line that it printed, as JSON; None where there is none."""
        lines = self.printed.read_text(encoding="utf-8").splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            return None

    def notes(self):
        """What it said of optimisations that failed."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        text += self.printed.read_text(encoding="utf-8", errors="replace")
        return [line.strip() for line in text.splitlines() if any(words in line for words in NOTEWORTHY)]

    def last_words(self):
        """The last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def keep_kernels(run):
    """Copy the source of kernels that failed to compile to OUT/kernels."""
    wanted = set()
    for log in (run.out / "logs").glob("*.txt"):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if "Triton compilation failed" in line or "is not compiled" in line:
                wanted |= set(KERNEL.findall(line))
    if not wanted:
        return
    folder = run.out / "kernels"
    folder.mkdir(exist_ok=True)
    for source in (run.caches / "inductor").rglob("*.py"):
        text = source.read_text(encoding="utf-8", errors="replace")
        for name in wanted:
            if f"def {name}(" in text:
                shutil.copyfile(source, folder / f"{name}.{source.stem[:8]}.py")


# --- smoke ------------------------------------------------------------------------------------------------


def smoke(run):
    """Each tiny preset trains, goes on, samples, shows its attention and is exported, in every mode."""
    chains = [(preset, mode) for mode in ("compiled", "eager", "deterministic") for preset in TINY]
    if not run.compile:
        chains = [chain for chain in chains if chain[1] != "compiled"]
    work = {"compiled": smoke_compiled, "eager": smoke_eager, "deterministic": smoke_deterministic}
    workers = 2 if run.small else len(chains)
    run.log(f"smoke: {len(chains)} chains of commands, {workers} at once")
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        shares = {"compiled": len(TINY), "eager": workers, "deterministic": workers}  # of the cores
        started = [pool.submit(work[mode], Chain(run, preset, mode, shares[mode])) for preset, mode in chains]
        for chain in started:
            chain.result()
    shutil.rmtree(run.out / "smoke")  # what went wrong is in the logs


class Chain:
    """Commands that follow each other; nothing follows one that fails."""

    def __init__(self, run, preset, mode, share):
        self.run, self.preset, self.mode, self.share = run, preset, mode, share
        self.folder = run.out / "smoke" / f"{preset}-{mode}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        iterations = 8 if run.small else 32
        self.kimg = 16 * iterations / 1000
        self.ok = True

    def step(self, name, *command, also=None):
        """Run `gantx`; `also` returns what is wrong with what it made, or None."""
        if not self.ok:
            return
        process, code, wrong = None, None, None
        if self.run.left < 5:
            wrong = "no time left"
        else:
            process = Process(
                self.run, f"smoke-{self.preset}-{self.mode}-{name}", ["-m", "gantx", *command], self.share
            )
            code = process.wait(self.run.left)
            if code != 0:
                ended = "stopped, no time left" if code is None else f"exit code {code}"
                wrong = f"{ended}: {process.last_words()}"
            elif notes := process.notes():
                wrong = notes[0]
            elif also is not None:
                wrong = also()
        self.ok = wrong is None
        seconds = 0 if process is None else process.seconds
        self.run.log(f"smoke: {self.preset}, {self.mode}, {name}: {wrong or 'passed'} ({seconds} s)")
        row = f"{self.preset}, {self.mode}, {name}"
        self.run.keep("smoke", row=row, side="smoke", figures={"seconds": seconds, "wrong": wrong})

    def train(self, name, folder, times, *settings):
        """Train anew."""
        few = ["training.samples=4", "training.report_kimg=0.064", "data.shapes.count=256"]
        few += [f"training.checkpoint_kimg={self.kimg}", f"training.sample_kimg={self.kimg}"]
        self.step(
            name,
            *("train", "--preset", self.preset, "--data", "shapes", "--kimg", times * self.kimg),
            *("--out", folder, "--device", self.run.device, "--precision", "bf16"),
            *(*few, *settings),
            also=lambda: not_finite(folder),
        )

    def resume(self, folder, *settings):
        """Go on to twice the length."""
        self.step(
            "resume",
            *("train", "--resume", folder, "--kimg", 2 * self.kimg, "--device", self.run.device, *settings),
            also=lambda: not_finite(folder),
        )


def smoke_eager(chain):
    """Trained with replay, continued without, then used."""
    folder, device = chain.folder / "run", ("--device", chain.run.device)
    chain.train("train", folder, 1, "training.compile=false", "training.cuda_graphs=true")
    chain.resume(folder, "training.cuda_graphs=false")
    chain.step("sample", "sample", folder, "-n", 64, "-o", chain.folder / "grid.png", "-f", *device)
    many = ("-n", 512, "--batch", 64, "-o", chain.folder / "all.npy", "-f")  # enough batches for a replay
    chain.step("sample-replayed", "sample", folder, *many, *device)
    chain.step("attend", "attend", folder, "-o", chain.folder / "maps.png", "-f", *device)
    chain.step("export", "export", folder, "-o", chain.folder / "generator.safetensors", "-f")
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
        chain.step("export-onnx", "export", folder, "-o", chain.folder / "generator.onnx", "-f")


def smoke_compiled(chain):
    """Trained compiled with replay, continued compiled without, then sampled compiled."""
    folder = chain.folder / "run"
    settings = ("training.compile=true", "training.cuda_graphs=true", *SHALLOW[chain.preset])
    chain.train("train", folder, 1, *settings)
    chain.resume(folder, "training.compile=true", "training.cuda_graphs=false")
    chain.step(
        "sample",
        *("sample", folder, "-n", 64, "--compile", "-o", chain.folder / "grid.png", "-f"),
        *("--device", chain.run.device),
    )


def smoke_deterministic(chain):
    """A run that was stopped and continued ends with the bits of one that was not."""
    whole, parts = chain.folder / "whole", chain.folder / "parts"
    settings = ("training.compile=false", "training.cuda_graphs=auto", "training.deterministic=true")
    chain.train("train", whole, 2, *settings)
    if chain.ok:
        shutil.copytree(whole, parts)
        latest(parts).unlink()
    chain.step(
        "resume",
        *("train", "--resume", parts, "--device", chain.run.device),
        also=lambda: differing(whole, parts),
    )


def not_finite(folder):
    """What is wrong with the metrics of a run; None for nothing."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    if not lines:
        return "no metrics"
    values = json.loads(lines[-1])
    bad = [key for key, value in values.items() if isinstance(value, float) and not abs(value) < 1e6]
    return f"metrics out of bounds: {', '.join(bad)}" if bad else None


def latest(folder):
    """The latest checkpoint of a run."""
    return max((folder / "checkpoints").glob("*.safetensors"))


def differing(one, two):
    """Which tensors of the latest checkpoints of two runs differ; None for none."""
    import torch
    from safetensors.torch import load_file

    first, second = (load_file(max((folder / "checkpoints").glob("*.safetensors"))) for folder in (one, two))
    if first.keys() != second.keys():
        return "the checkpoints hold other tensors"
    names = [name for name in first if not torch.equal(first[name], second[name])]
    return f"{len(names)} tensors differ, {names[0]} among them" if names else None


# --- speed ------------------------------------------------------------------------------------------------


def speed(run, rows):
    """All rows compile at once; those ready by the barrier are measured one by one, late ones after that."""
    commands = speed_rows(run, rows)
    (run.out / "profiles").mkdir(exist_ok=True)
    names = list(commands)
    size = 2 if run.small else len(names)
    for start in range(0, len(names), size):
        wave = names[start : start + size]
        waves = -(-(len(names) - start) // size)  # this one and those after it
        share = run.left / waves
        run.log(f"speed: {', '.join(wave)} start side by side")
        barrier = time.monotonic() + max(share - MEASURING, share / 2)
        measure_rows(run, {name: Row(run, name, commands[name], size) for name in wave}, barrier)
    shutil.rmtree(run.out / "turns")


class Row:
    """A row that is measured when it is told to."""

    def __init__(self, run, name, command, share):
        self._folder = run.out / "turns" / name
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self.process = Process(run, f"speed-{name}", [*command, "--turn", self._folder], share)

    @property
    def ready(self):
        """Whether it waits for its turn, or has come to an end."""
        return self.process.ended or (self._folder / "ready").exists()

    def go(self):
        """Let it measure."""
        (self._folder / "go").touch()


def measure_rows(run, rows, barrier):
    """Measure rows as they are ready; the first at the barrier, or once all are."""
    while rows and run.left > 8:
        ready = [name for name, row in rows.items() if row.ready]
        late = [name for name in rows if name not in ready]
        if late and (time.monotonic() < barrier or not ready):
            time.sleep(0.1)
            continue
        for name in late:
            rows[name].process.send(signal.SIGSTOP)  # nothing runs beside what is measured
        for name in ready:
            rows[name].go()
            finish_row(run, name, rows.pop(name).process)
        for name in late:
            run.log(f"speed: {name} is late")
            rows[name].process.send(signal.SIGCONT)
    for name, row in rows.items():
        row.process.wait(0)
        finish_row(run, name, row.process)


def speed_rows(run, rows):
    """Commands by name of the row."""
    table = {name: row for name, row in {**PAIRS, **LARGE}.items() if not rows or name in rows}
    how = "on" if run.compile else "off"
    steps = ["--steps", 1] if run.small else []
    found = {}
    for name, row in table.items():
        preset, batch, settings = SMALL[name] if run.small else row
        found[name] = [
            *("benchmarks/gpu_row.py", "train", "--preset", preset, "--batch", batch),
            *("--device", run.device, "--compile", how, *steps),
            *("--profile", run.out / "profiles" / f"{name}.txt", *settings, *run.settings),
        ]
    if not rows or "sample" in rows:
        preset, batch, number = ("transgan-tiny", 16, 64) if run.small else ("transgan-s", 512, 50000)
        command = ["benchmarks/gpu_row.py", "sample", "--preset", preset, "--batch", batch]
        command += ["--number", number, "--device", run.device]
        found["sample"] = [*command, "--compile", "off"]
        if run.compile:
            found["sample-compiled"] = [*command, "--compile", "on"]
    return found


def finish_row(run, name, process):
    """Wait for a row that measures, and keep what it found."""
    code = process.wait(run.left)
    figures = process.document() if code == 0 else None
    side = "sampling" if name.startswith("sample") else "gantx"
    notes = process.notes()
    run.keep("speed", row=name, side=side, figures=figures, notes=notes)
    if figures is None:
        run.log(f"speed: {name} failed or had no time left: {process.last_words()}")
    else:
        per_second = figures.get("images_per_second") or figures.get("file_images_per_second")
        run.log(f"speed: {name}: {per_second:,.0f} images/s{'; ' + notes[0] if notes else ''}")


# --- baseline ---------------------------------------------------------------------------------------------


def baseline(run, rows):
    """The classic loop, alone, row by row."""
    for name, row in PAIRS.items():
        if rows and name not in rows:
            continue
        preset, batch, settings = SMALL[name] if run.small else row
        command = ["benchmarks/classic.py", "--preset", preset, "--batch", batch, "--device", run.device]
        command += ["--steps", 1] if run.small else ["--steps", 10]
        figures, words = None, "no time left"
        if run.left > 5:
            process = Process(run, f"baseline-{name}", [*command, *settings])
            code = process.wait(run.left)
            figures, words = process.document() if code == 0 else None, process.last_words()
        run.keep("baseline", row=name, side="classic", figures=figures)
        if figures is None:
            run.log(f"baseline: {name} failed: {words}")
        else:
            run.log(f"baseline: {name}: {figures['images_per_second']:,.0f} images/s")


# --- train ------------------------------------------------------------------------------------------------


def train(run, kimg, how):
    """transgan-s on CIFAR-10 for as long as there is time, scored by the yardstick of ../shared/eval."""
    if run.cifar is None or SHARED is None:
        run.log("train: skipped, no CIFAR-10 (CIFAR=path of the zip) or no ../shared/eval")
        return
    preset, images, scoring = ("transgan-tiny", 200, 60) if run.small else ("transgan-s", 10000, 45)
    folder = run.out / "train"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["-m", "gantx", "train", "--preset", preset, "--data", run.cifar, "--kimg", kimg]
    command += ["--out", folder, "--device", run.device, "--compile", how]
    command += [f"training.report_kimg={kimg / 50}", f"training.sample_kimg={kimg / 8}"]
    command += [f"training.checkpoint_kimg={kimg / 8}", *run.settings]
    process = Process(run, "train", command)
    code = process.wait(run.left - scoring, gently=15)
    found = {"preset": preset, "exit_code": code, "wall_seconds": process.seconds}
    notes = process.notes()
    if code not in (0, 75):
        run.log(f"train: exit code {code}: {process.last_words()}")
        run.keep("train", row="transgan-s on CIFAR-10", side="train", figures=None, notes=notes)
        return
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found |= {key: value for key, value in last.items() if isinstance(value, int | float)}
    samples = run.out / "samples.npy"
    sampling = ["-m", "gantx", "sample", folder, "-n", images, "-o", samples, "-f", "--device", run.device]
    process = Process(run, "train-sample", sampling)
    if process.wait(run.left) == 0:
        command = [SHARED / "eval" / "cifar_fd.py", samples, run.cifar, "--num", images]
        command += ["--device", run.device.partition(":")[0]]
        scored = Process(run, "train-score", command)
        if scored.wait(run.left) == 0:
            found["cfd"] = float(scored.printed.read_text(encoding="utf-8").split()[-1])
    samples.unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints")  # large, and of no further use
    run.keep("train", row="transgan-s on CIFAR-10", side="train", figures=found, notes=notes)
    run.log(f"train: {found.get('kimg', last.get('images'))} kimg, CFD {found.get('cfd', '-')}")


# --- all --------------------------------------------------------------------------------------------------


def main():
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=tuple(SECONDS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny presets and few steps")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--caches", type=Path, required=True, help="folder of what compiles")
    parser.add_argument("--cifar", type=Path, help="zip of CIFAR-10 images")
    parser.add_argument("--kimg", type=float, default=200, help="length of the training run")
    parser.add_argument("--train-compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--row", action="append", default=[], help="this row of speed and baseline alone")
    parser.add_argument("--seconds", type=float, help="of each part")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for rows of gantx")
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cifar = asked.cifar or (SHARED and SHARED / "data" / "cifar10-train.zip")
    run = Run(
        out=out,
        device=asked.device,
        small=asked.small,
        compile=not asked.no_compile,
        settings=asked.set,
        cifar=cifar.resolve() if cifar is not None and cifar.is_file() else None,
        caches=asked.caches.resolve(),
    )
    for part in asked.parts:
        run.began = time.monotonic()
        run.deadline = run.began + (asked.seconds or SECONDS[part])
        (out / f"{part}.jsonl").write_text("", encoding="utf-8")
        if part == "smoke":
            smoke(run)
        elif part == "speed":
            speed(run, asked.row)
        elif part == "baseline":
            baseline(run, asked.row)
        else:
            train(run, asked.kimg, asked.train_compile)
        if (out / "logs").is_dir():
            keep_kernels(run)


if __name__ == "__main__":
    main()
