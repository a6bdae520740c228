"""The table of benchmarks/gpu.sh, from the figures it collected.

    python benchmarks/gpu_table.py results.jsonl > table.md

Every line of the file is {"row": ..., "side": "gantx" | "classic" | "sampling", "figures": ...}; the figures
are those of `gantx bench --json` or `benchmarks/classic.py`, or null where a row failed or had no time left.
"""

import argparse
import json
from pathlib import Path

# Targets: times the speed of the classic loop; shares of the ceiling, of the time, of the classic loop's
# memory, of the generator's speed.
SPEED = {"transgan-s": 6, "transgan2-cifar10": 4, "vitgan-cifar10": 8, "ganformer-64": 4}
SHARE, GAPS, MEMORY, FILE = 0.35, 0.03, 0.5, 0.8


def read(path):
    """Figures by (row, side), in the order of the file."""
    found = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {(line["row"], line["side"]): line["figures"] for line in found}


def table(figures):
    """Markdown: each target beside what was measured, and the figures behind it."""
    lines = ["| what | target | measured | holds |", "|---|---|---|---|"]
    lines += [row for name, target in SPEED.items() for row in _pair(name, target, figures)]
    large = [(name, found) for (name, side), found in figures.items() if name.startswith("transgan-xl")]
    known = [(found["share_of_ceiling"], name) for name, found in large if found]
    if large:
        share, name = max(known, default=(None, "transgan-xl"))
        lines.append(_line(f"{name}: share of the matmul ceiling", f"≥ {SHARE:.0%}", share, "{:.1%}", SHARE))
    for (name, side), found in figures.items():
        if side == "sampling":
            share = found and found["share_of_generator"]
            what = f"{name}: images to one file, share of the generator's speed"
            lines.append(_line(what, f"≥ {FILE:.0%}", share, "{:.1%}", FILE))
    lines += ["", *_details(figures)]
    machines = {json.dumps(found["machine"]): found["machine"] for found in figures.values() if found}
    for machine in machines.values():
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines += ["", f"{machine['name']}, {machine['threads']} of {machine['cores']} cores; {versions}."]
    return "\n".join(lines) + "\n"


def _pair(name, target, figures):
    """Speed, memory and gaps of a preset against the classic loop."""
    if (name, "gantx") not in figures:
        return
    ours, classic = figures[name, "gantx"], figures.get((name, "classic"))
    both = ours and classic
    speed = both and ours["images_per_second"] / classic["images_per_second"]
    memory = both and ours["peak_memory_gib"] / classic["peak_memory_gib"]
    gaps = ours and ours["idle_share"]
    yield _line(f"{name}: images/s against the classic loop", f"≥ {target}×", speed, "{:.1f}×", target)
    yield _line(f"{name}: peak memory against it", f"≤ {MEMORY}×", memory, "{:.2f}×", most=MEMORY)
    yield _line(f"{name}: host gaps", f"< {GAPS:.0%}", gaps, "{:.1%}", most=GAPS)


def _line(what, target, value, form, least=None, most=None):
    if value is None:
        return f"| {what} | {target} | - | not measured |"
    holds = (least is None or value >= least) and (most is None or value <= most)
    return f"| {what} | {target} | {form.format(value)} | {'yes' if holds else 'no'} |"


def _details(figures):
    """Everything that was run, one line each."""
    yield "| run | preset | batch | images/s | ms an iteration | ceiling | memory | first steps |"
    yield "|---|---|---|---|---|---|---|---|"
    for (name, side), found in figures.items():
        if found is None:
            yield f"| {name}, {side} | failed, or no time left | | | | | | |"
            continue
        speed = found.get("images_per_second") or found["file_images_per_second"]
        numbers = {
            "iteration_milliseconds": "{:.1f}",
            "share_of_ceiling": "{:.1%}",
            "peak_memory_gib": "{:.2f} GiB",
            "warm_up_seconds": "{:.0f} s",
        }
        cells = [f"{name}, {side}", found["preset"], str(found["batch"]), f"{speed:,.0f}"]
        cells += [form.format(found[key]) if key in found else "-" for key, form in numbers.items()]
        yield f"| {' | '.join(cells)} |"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results")
    print(table(read(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
