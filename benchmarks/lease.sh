#!/usr/bin/env bash
# What a GPU alone can show, in under eight minutes: bash benchmarks/lease.sh OUT [PART ...]
#
# Each part has a limit of its own and leaves OUT/PART.txt as it goes; a part that fails or runs out
# of time does not stop the others. Parts: tests round paper demo; and, where they are named,
# round_plain round_compiled precision. WHEELS=DIR has the packages that the machine lacks.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
parts=("${@:-tests round paper demo}")
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
set --
. benchmarks/lease_packages.sh

part() { # name, seconds, command
    name=$1 limit=$2
    shift 2
    started=$SECONDS
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
    echo "$name: status $? after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
}

wanted() {
    [[ " ${parts[*]} " == *" $1 "* ]]
}

{
    git describe --always --dirty=+ 2>/dev/null || echo "no repository here"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    $python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
} >"$out/summary.txt" 2>&1

round=($python -m benchmarks.round --gpu 0 --image_size 224 --file_size 224 --images 480
    --batch_size 48)
wanted tests && part tests 90 $python -m pytest -rfE -p no:cacheprovider tests/device
wanted round && part round 90 "${round[@]}" --repeats 1
wanted paper && part paper 140 $python -m benchmarks.gpu paper --repeats 1
wanted demo && part demo 90 $python train_main.py --preset demo --gpu 0 --progress 0 --run_dir "$out/demo"
wanted round_plain && part round_plain 100 "${round[@]}" --repeats 3 --compile off
wanted round_compiled && part round_compiled 300 "${round[@]}" --repeats 3 --compile on --unchecked
wanted precision && part precision 300 $python -m benchmarks.gpu precision --repeats 1
if [ -d "$out/demo" ]; then
    rm -rf "$out/demo/checkpoints" "$out/demo/tb"
    tar -czf "$out/demo.tar.gz" -C "$out" demo && rm -rf "$out/demo"
fi
cat "$out/summary.txt"
