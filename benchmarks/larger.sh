#!/usr/bin/env bash
# Models as large as a card, on one card and on two: time, memory, and the rates that decide.
#
#     benchmarks/larger.sh FOLDER OUT qwen2.5-32b
#     benchmarks/larger.sh FOLDER OUT qwen3-30b-a3b
#
# FOLDER is made and removed, on a disk with 70 GB free; OUT gets larger.csv and larger.txt. Every
# step has a limit, and one that fails or takes longer leaves the others alone. WINDOWS, WORKERS and
# DEPTH (fewer blocks, for a slow disk) may be set.
set -u
here=$(dirname "$0") folder=$1 out=$2
mkdir -p "$out"

step() {
    echo "== $*" | tee -a "$out/larger.txt"
    timeout "${LIMIT:-240}" python -W ignore "$here/$1" "${@:2}" 2>&1 | tee -a "$out/larger.txt"
}
sweep() {
    step workers.py --model "$folder" --device cuda --sweep projections --format nvfp4 \
        --windows "${WINDOWS:-8}" --warm 2 --csv "$out/larger.csv" "$@"
}
written() {
    rm -rf "$folder"
    step written.py "$folder/$1" --config "$1" ${DEPTH:+--depth "$DEPTH"}
}

base=$folder
for shape in "${@:3}"; do
    written "$shape"
    folder=$base/$shape
    sweep --offload disk --workers "${WORKERS:-1,2}"
    sweep --offload yes --workers "${WORKERS:-1,2}"
    sweep --offload no --workers 1
    folder=$base
    rm -rf "$base"
done
