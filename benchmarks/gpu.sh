#!/usr/bin/env bash
# Every figure that needs a GPU, in one go of less than nine minutes: gantx against the classic loop.
#
#     OUT=gpu-results benchmarks/gpu.sh
#     OUT=/tmp/smoke DEVICE=cpu SMOKE=1 benchmarks/gpu.sh      (tiny presets, a few steps: does it run at all?)
#
# Needs Python with PyTorch 2.11 or later and the packages gantx depends on; reads no data and no network.
# Each row runs under a timeout of its own, alone on the GPU; one that fails is told in the log and left out.
#
# Variables:
#   OUT       folder for table.md, results.jsonl (one document a row) and log.txt     [gpu-results]
#   DEVICE    cuda, cuda:N, or cpu                                                    [cuda]
#   SMOKE     1 for tiny presets and few steps                                        [0]
#   PYTHON    the interpreter                                                         [python3]
#   SETTINGS  more settings for the rows of gantx, such as training.cuda_graphs=true  []
#   LIMIT     seconds after which no row starts any more                              [510]

set -uo pipefail
OUT=${OUT:-gpu-results} DEVICE=${DEVICE:-cuda} SMOKE=${SMOKE:-0} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-510}
read -ra MORE <<< "${SETTINGS:-}"
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
LOG=$OUT/log.txt RESULTS=$OUT/results.jsonl
: > "$LOG"
: > "$RESULTS"
SCRATCH=$(mktemp -d) || exit
trap 'rm -rf "$SCRATCH"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# What compiles in the first part is found by the second.
export TORCHINDUCTOR_CACHE_DIR="$SCRATCH/inductor" TRITON_CACHE_DIR="$SCRATCH/triton"

if ! "$PYTHON" -c "import torch, pydantic, yaml, typer, rich, safetensors, PIL, torchvision" 2>> "$LOG"; then
    echo "error: $PYTHON lacks a package gantx depends on ($(tail -n 1 "$LOG")): install gantx there" >&2
    exit 3
fi

say() { echo "[$SECONDS s] $*" | tee -a "$LOG" >&2; }

# keep ROW SIDE FILE: append one document, or null for a row without figures.
keep() {
    local figures=null
    [ -s "$3" ] && figures=$(tail -n 1 "$3")
    printf '{"row": "%s", "side": "%s", "figures": %s}\n' "$1" "$2" "$figures" >> "$RESULTS"
}

# measure ROW SIDE SECONDS COMMAND...: one row, alone, for so many seconds at most.
measure() {
    local row=$1 side=$2 most=$3 file="$SCRATCH/$1.$2.json" left=$((LIMIT - SECONDS))
    shift 3
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 10 ]; then
        say "$row, $side: no time left"
    else
        say "$row, $side: $*"
        if ! timeout -k 5 "$most" "$PYTHON" "$@" > "$file" 2>> "$LOG"; then
            say "$row, $side: failed or took more than $most s"
            : > "$file"
        fi
    fi
    keep "$row" "$side" "$file"
}

AT_64="data.resolution=64 generator.resolution=64 discriminator.resolution=64"
if [ "$SMOKE" = 1 ]; then
    PAIRS=("transgan-s transgan-tiny 4" "transgan2-cifar10 transgan-tiny 4" "vitgan-cifar10 vitgan-tiny 4"
        "ganformer-64 ganformer-tiny 4")
    LARGE=("transgan-xl-4 transgan-tiny 4" "transgan-xl-8 transgan-tiny 8")
    STEPS=(--steps 1) PLAIN_STEPS=(--steps 1) SAMPLING=(--preset transgan-tiny --batch 16 -n 64) HOW=(--compile off)
    PAINTER=(--no-compile)
else
    # A row is: its name, the preset, the batch, settings.
    PAIRS=("transgan-s transgan-s 64" "transgan2-cifar10 transgan2-cifar10 64" "vitgan-cifar10 vitgan-cifar10 128"
        "ganformer-64 ganformer-ffhq 32 $AT_64")
    LARGE=("transgan-xl-64 transgan-xl 64" "transgan-xl-128 transgan-xl 128 training.generator_batch=256"
        "transgan-xl-256 transgan-xl 256 training.generator_batch=256")
    STEPS=() PLAIN_STEPS=() SAMPLING=(--preset transgan-s --batch 512 -n 50000) HOW=(--compile on)
    PAINTER=(--compile)
fi

# How sampling is measured with gantx.
PAINTED=(-m gantx bench sample --json --device "$DEVICE" "${SAMPLING[@]}")

# trained ROW-WORDS...: the command that measures a row's training with gantx, in COMMAND.
trained() {
    COMMAND=(-m gantx bench train --json --device "$DEVICE" "${HOW[@]}" --preset "$2" --batch "$3" "${@:4}")
    COMMAND+=(${MORE[@]+"${MORE[@]}"})
}

if [ "$SMOKE" != 1 ]; then
    # Compilers need processor cores, not the GPU: all rows compile at once, each to find the result later.
    say "compiling every row at once"
    for row in "${PAIRS[@]}" "${LARGE[@]}"; do
        read -ra words <<< "$row"
        trained "${words[@]}"
        TORCHINDUCTOR_COMPILE_THREADS=4 timeout -k 5 230 "$PYTHON" "${COMMAND[@]}" --steps 1 \
            > "$SCRATCH/${words[0]}.cold.json" 2>> "$LOG" &
    done
    TORCHINDUCTOR_COMPILE_THREADS=4 timeout -k 5 230 "$PYTHON" "${PAINTED[@]}" "${PAINTER[@]}" -n 512 \
        > "$SCRATCH/transgan-s-compiled.cold.json" 2>> "$LOG" &
    wait
    for file in "$SCRATCH"/*.cold.json; do
        seconds=$("$PYTHON" -c 'import json, sys; print(round(json.load(sys.stdin)["warm_up_seconds"]))' \
            < "$file" 2>> "$LOG") || seconds="more than 230"
        say "$(basename "$file" .cold.json): $seconds s of first steps, beside the other compilers"
    done
fi

for row in "${PAIRS[@]}"; do
    read -ra words <<< "$row"
    trained "${words[@]}"
    measure "${words[0]}" gantx 70 "${COMMAND[@]}" "${STEPS[@]}"
    measure "${words[0]}" classic 45 benchmarks/classic.py --device "$DEVICE" --preset "${words[1]}" \
        --batch "${words[2]}" "${PLAIN_STEPS[@]}" "${words[@]:3}"
done
for row in "${LARGE[@]}"; do
    read -ra words <<< "$row"
    trained "${words[@]}"
    measure "${words[0]}" gantx 60 "${COMMAND[@]}" "${STEPS[@]}"
done
measure transgan-s sampling 60 "${PAINTED[@]}"
measure transgan-s-compiled sampling 60 "${PAINTED[@]}" "${PAINTER[@]}"

{
    [ "$SMOKE" = 1 ] && echo "A smoke test: tiny presets stand in for the named ones, and no target means anything." && echo
    "$PYTHON" benchmarks/gpu_table.py "$RESULTS"
} | tee "$OUT/table.md"
say "done: $OUT/table.md"
