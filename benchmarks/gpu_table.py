"""The table of benchmarks/gpu.sh, from the figures it collected.

    python benchmarks/gpu_table.py smoke.jsonl speed.jsonl baseline.jsonl train.jsonl > table.md

Every line of a file is {"row": ..., "side": ..., "figures": ..., "notes": [...]}. The side is `gantx`,
`classic` or `sampling`, with the figures of `gantx bench --json` or `benchmarks/classic.py`; `smoke`, with
what went wrong; or `train`, with the last metrics and a score. Figures are null where a row failed or had no
time left; notes tell of optimisations that failed.
"""

import argparse
import json
from pathlib import Path

# Targets: times the speed of the classic loop; shares of the ceiling, of the time, of the classic loop's
# memory, of the generator's speed.
SPEED = {"transgan-s": 12, "transgan2-cifar10": 6, "vitgan-cifar10": 15, "ganformer-64": 8}
SHARE, GAPS, MEMORY, FILE = 0.35, 0.03, 0.5, 0.8


def read(*paths):
    """Figures by (row, side), in the order of the files, which may be missing; and all notes by row."""
    texts = [path.read_text(encoding="utf-8") for path in map(Path, paths) if path.is_file()]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    figures = {(line["row"], line["side"]): line["figures"] for line in found}
    notes = {f"{line['row']}, {line['side']}": line["notes"] for line in found if line.get("notes")}
    return figures, notes


def table(figures, notes):
    """Markdown: each target beside what was measured, and the figures behind it."""
    smoke = {name: found for (name, side), found in figures.items() if side == "smoke"}
    trained = {name: found for (name, side), found in figures.items() if side == "train"}
    figures = {key: found for key, found in figures.items() if key[1] not in ("smoke", "train")}
    lines = [*_smoke(smoke), *_speed(figures), *_trained(trained)]
    if notes:
        lines += ["", "Optimisations that failed:", ""]
        lines += [f"- {row}: {note}" for row, found in notes.items() for note in found]
    return "\n".join(lines).strip("\n") + "\n"


def _smoke(found):
    """What passed and what did not."""
    if not found:
        return
    wrong = {name: result["wrong"] for name, result in found.items() if result["wrong"]}
    yield f"Smoke: {len(found) - len(wrong)} of {len(found)} commands pass."
    yield ""
    if wrong:
        yield from (f"- {name}: {text}" for name, text in wrong.items())
        yield ""


def _trained(found):
    """What the training run came to."""
    for name, result in found.items():
        if result is None:
            yield from ("", f"{name}: failed.")
            continue
        known = {
            "kimg": "kimg",
            "seconds": "s of training",
            "images_per_second": "images/s",
            "cfd": "CFD",
        }
        parts = [f"{result[key]} {unit}" for key, unit in known.items() if key in result]
        yield from ("", f"{name}: {', '.join(parts)}.")


def _speed(figures):
    """Targets and measurements."""
    if not figures:
        return []
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
    return lines


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
    parser.add_argument("results", nargs="+")
    print(table(*read(*parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
