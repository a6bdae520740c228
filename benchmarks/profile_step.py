"""What an iteration of training spends its time on: kernels of a GPU and operators of the host, as text.

    python benchmarks/profile_step.py --preset vitgan-cifar10 --batch 128 --device cuda
    python benchmarks/profile_step.py --preset transgan-tiny --device cpu --compile off

The iterations of a whole period of lazy penalties are profiled once, after the steps have resolved: compiled,
captured, warm. The profiler slows the host down, not the kernels: trust its kernels, and take from its host
times the order alone. On a CPU the operators are the kernels.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gantx.benchmarking.host_gaps import covered  # noqa: E402
from gantx.benchmarking.machine import measuring, this_machine  # noqa: E402
from gantx.benchmarking.training import WARM_UP, Trainer  # noqa: E402
from gantx.config import presets  # noqa: E402
from gantx.runtime import devices  # noqa: E402
from gantx.training.compiled_losses import WORTHWHILE  # noqa: E402
from gantx.training.resolve import frozen_garbage, prepared_process, resolve  # noqa: E402

DEAREST = 40  # kernels and operators that are listed


def profiled(work, device, iterations, title):
    """Profile some work: text, and seconds in which a GPU was busy; None where there is none.

    Args:
        work: so many iterations.
        device: where.
        iterations: that figures are divided by.
        title: first line of the text.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with profile(activities=activities, acc_events=True) as profiler:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    kernels = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    busy = covered((start, end) for _, start, end in kernels) / 1e6 if kernels else None
    lines = [title, f"{iterations} iterations; all figures are per iteration", ""]
    if kernels:
        lines += [*_of_kernels(kernels, busy, iterations), ""]
    lines += _of_host(profiler, iterations)
    return "\n".join(lines) + "\n", busy


def _of_kernels(kernels, busy, iterations):
    calls, spent = Counter(), defaultdict(float)
    for name, start, end in kernels:
        calls[name] += 1
        spent[name] += (end - start) / 1000
    total = sum(spent.values())
    yield f"GPU busy {1000 * busy / iterations:.3f} ms, {len(kernels) / iterations:,.0f} kernels and copies"
    yield "    ms   share    calls  kernel"
    dearest = sorted(spent, key=spent.get, reverse=True)
    for name in dearest[:DEAREST]:
        share = spent[name] / total
        yield f"{spent[name] / iterations:6.3f}  {share:6.1%}  {calls[name] / iterations:7.1f}  {name[:160]}"
    if rest := dearest[DEAREST:]:
        time, number = sum(spent[name] for name in rest), sum(calls[name] for name in rest)
        cells = f"{time / iterations:6.3f}  {time / total:6.1%}  {number / iterations:7.1f}"
        yield f"{cells}  {len(rest)} other kernels"


def _of_host(profiler, iterations):
    found = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in found) / 1000
    yield f"host {total / iterations:.3f} ms by operator, with the profiler's own work"
    yield "    ms   share    calls  operator"
    for event in sorted(found, key=lambda event: event.self_cpu_time_total, reverse=True)[:DEAREST]:
        time = event.self_cpu_time_total / 1000
        calls = event.count / iterations
        yield f"{time / iterations:6.3f}  {time / total:6.1%}  {calls:7.1f}  {event.key[:160]}"


def resolved(settings, device):
    """The settings of a long run, with the attention window open."""
    settings = resolve(settings, device, WORTHWHILE, lambda text: None)
    training = settings.training.model_copy(update={"attention_window": None})
    return settings.model_copy(update={"training": training})


def main():
    """Profile a preset and print the text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    asked = parser.parse_intermixed_args()
    changes = {"training.batch": asked.batch, "training.compile": asked.compile}
    given = {key: value for key, value in changes.items() if value is not None}
    device = devices.pick_device(asked.device)
    settings = resolved(presets.load(asked.preset, overrides=asked.overrides, settings=given), device)
    training = settings.training
    with measuring(device, training.threads, training.batch), prepared_process(settings, device):
        run = Trainer(settings, device, lambda line: print(line, file=sys.stderr))
        for step in run.steps.steps:
            for _ in range(WARM_UP):
                run.step(step)
        period = math.lcm(*(phase.interval for phase in run.phases))
        with frozen_garbage():
            run.iterate(period)
            how = "compiled" if training.compile is True else "eager"
            title = f"{settings.name}, batch {training.batch}, {training.precision}, {how}"
            machine = this_machine(device)
            title += f"; {machine.name}, torch {machine.versions['torch']}"
            text, _ = profiled(partial(run.iterate, period), device, period, title)
    print(text, end="")


if __name__ == "__main__":
    main()
