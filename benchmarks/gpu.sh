#!/usr/bin/env bash
# Everything that needs a GPU, in eight minutes: does gantx run there, how fast, and does it learn?
#
#     OUT=gpu-results benchmarks/gpu.sh
#     PART=smoke OUT=gpu-results benchmarks/gpu.sh              (one part alone)
#     OUT=/tmp/smoke DEVICE=cpu SMOKE=1 SECONDS_EACH=600 benchmarks/gpu.sh        (does it run at all?)
#
# Needs Python with PyTorch 2.11 or later and the packages gantx depends on; uses no network.
#
# Parts, each ending in time whatever fails:
#   smoke     145 s  each tiny preset trained, resumed, sampled, attended, exported, eager, with replay and without;
#                    trained, resumed and sampled compiled (fewer blocks); resumed deterministically to the bit
#   speed     140 s  gantx, all rows compiled at once and measured one by one, each with a profile
#   baseline   65 s  the classic loop for the same rows
#   train     130 s  transgan-s on CIFAR-10, scored by ../shared/eval/cifar_fd.py
#
# OUT receives table.md, <part>.jsonl (a document for each command), profiles/ of one iteration as text, logs/ of
# every command, kernels/ that failed to compile, train/, and log.txt.
#
# Variables:
#   OUT           folder of the results                                    [gpu-results]
#   PART          parts, separated by spaces                               [smoke speed baseline train]
#   ROWS          rows of speed and baseline: "vitgan-cifar10 sample"      [all of them]
#   DEVICE        cuda, cuda:N, or cpu                                     [cuda]
#   SMOKE         1 for tiny presets and few steps                         [0]
#   COMPILE       0 to compile nothing                                     [1; on a CPU 0]
#   PYTHON        the interpreter                                          [python3]
#   CIFAR         zip of CIFAR-10 images                                   [../shared/data/cifar10-train.zip]
#   KIMG          length of the training run                               [200]
#   SECONDS_EACH  that each part may take                                  [as above]
#   CACHE         folder that keeps what compiles                          [a temporary one]
#   SETTINGS      more settings for rows of gantx: training.batch=128      []

set -uo pipefail
OUT=${OUT:-gpu-results} DEVICE=${DEVICE:-cuda} SMOKE=${SMOKE:-0} PYTHON=${PYTHON:-python3} KIMG=${KIMG:-200}
read -ra PARTS <<< "${PART:-smoke speed baseline train}"
read -ra ONLY <<< "${ROWS:-}"
read -ra MORE <<< "${SETTINGS:-}"
[ "$DEVICE" = cpu ] && COMPILE=${COMPILE:-0}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit
[ -n "${CIFAR:-}" ] && CIFAR=$(realpath "$CIFAR")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if ! "$PYTHON" -c "import torch, pydantic, yaml, typer, rich, safetensors, PIL, torchvision" 2> "$OUT/log.txt"; then
    echo "error: $PYTHON lacks a package gantx depends on ($(tail -n 1 "$OUT/log.txt")): install gantx there" >&2
    exit 3
fi
if [ -z "${CACHE:-}" ]; then
    CACHE=$(mktemp -d) || exit
    trap 'rm -rf "$CACHE"' EXIT
fi
HOW=()
[ "$SMOKE" = 1 ] && HOW+=(--small)
[ "${COMPILE:-1}" = 0 ] && HOW+=(--no-compile)
[ -n "${CIFAR:-}" ] && HOW+=(--cifar "$CIFAR")
[ -n "${SECONDS_EACH:-}" ] && HOW+=(--seconds "$SECONDS_EACH")
for row in ${ONLY[@]+"${ONLY[@]}"}; do HOW+=(--row "$row"); done
for setting in ${MORE[@]+"${MORE[@]}"}; do HOW+=(--set "$setting"); done

"$PYTHON" benchmarks/gpu_parts.py "${PARTS[@]}" --out "$OUT" --device "$DEVICE" --caches "$CACHE" --kimg "$KIMG" \
    ${HOW[@]+"${HOW[@]}"}
code=$?
{
    [ "$SMOKE" = 1 ] && echo "A smoke test: tiny presets stand in for the named ones, and no target means anything." && echo
    "$PYTHON" benchmarks/gpu_table.py "$OUT"/{smoke,speed,baseline,train}.jsonl
} | tee "$OUT/table.md"
exit $code
