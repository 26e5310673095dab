#!/usr/bin/env bash
# The runs of docs/RESULTS.md's hippocampus table, several at a time on one GPU:
#   bash benchmarks/lease_hippocampus.sh OUT VOLUMES [SECONDS [AT_A_TIME]]
#
# OUT/hippocampus.tar.gz holds log, numbers and report of every run, anew after each that ends, and
# what the others had written when SECONDS were over; OUT/hippocampus.txt says which ended when.
# Runs of one seed are begun together, so that a table cut short is whole for the first seeds.
# DEVICE=cpu tries it without a GPU; FLAGS go to every run; WHEELS=DIR has packages that the machine
# lacks.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
volumes=$(cd "$2" && pwd)
limit=${3:-260} at_a_time=${4:-8}
python=${PYTHON:-python3} device=${DEVICE:-0}
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
. benchmarks/lease_packages.sh monai nibabel
runs=$(mktemp -d)
ended=$((SECONDS + limit))

pack() { # what is there of every run, at once whole
    (
        flock 9
        cd "$runs" && find . \( -name log.txt -o -name '*.csv' -o -name '*.json' -o -name '*.md' \
            -o -name output.txt -o -path '*-seed1337/figures/*.png' \) -print0 |
            tar --null -czf "$out/.packed" -T - && mv "$out/.packed" "$out/hippocampus.tar.gz"
    ) 9>"$runs/.lock"
}

one() { # name and flags of a run
    name=$1
    shift
    left=$((ended - SECONDS))
    [ "$left" -gt 5 ] || return
    mkdir -p "$runs/$name"
    began=$SECONDS
    timeout --kill-after=3 "$left" $python train_main.py --preset hippocampus --volumes "$volumes" \
        --gpu "$device" --progress 0 --run_dir "$runs/$name" $FLAGS "$@" \
        >"$runs/$name.output.txt" 2>&1
    status=$?
    mv "$runs/$name.output.txt" "$runs/$name/output.txt"
    rm -rf "$runs/$name/checkpoints" "$runs/$name/tb"
    echo "$name: status $status after $((SECONDS - began)) s, at $SECONDS s" >>"$out/hippocampus.txt"
    pack
}

plan() { # a run a line: name, then its flags
    for seed in ${SEEDS:-1337 1338 1339}; do
        echo "fedirm-seed$seed --seed $seed"
        echo "fed_consistency-seed$seed --seed $seed --method fed_consistency"
        echo "fedavg_10_0-seed$seed --seed $seed --method fedavg --num_labeled 10"
        echo "fedavg_2_0-seed$seed --seed $seed --method fedavg"
        echo "fed_selftraining-seed$seed --seed $seed --method fed_selftraining"
    done
    for labeled in ${LABELED:-4 8 2}; do
        for seed in ${SEEDS:-1337 1338 1339}; do
            some="--seed $seed --labeled_volumes $labeled"
            echo "fedirm-labeled$labeled-seed$seed $some"
            echo "fedavg_2_0-labeled$labeled-seed$seed $some --method fedavg"
        done
    done
    for seed in ${SEEDS:-1337 1338 1339}; do
        echo "fedirm_wasserstein-seed$seed --seed $seed --relation_distance wasserstein"
    done
}

FLAGS=${FLAGS:-}
{
    git describe --always --dirty=+ 2>/dev/null || echo "no repository here"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1
    $python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
    nproc
} >"$out/hippocampus.txt"
while read -r line; do
    while [ "$(jobs -rp | wc -l)" -ge "$at_a_time" ]; do wait -n; done
    one $line &
done < <(plan)
wait
pack
tail -n +5 "$out/hippocampus.txt"
