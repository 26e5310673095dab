#!/usr/bin/env bash
# What a GPU alone can show, in under nine minutes: bash benchmarks/lease.sh OUT [PART ...]
#
# Each part has a limit of its own and leaves OUT/PART.txt as it goes; a part that fails or runs out
# of time does not stop the others. Parts: tests demo round paper precision.
set -u
out=$1
shift
python=${PYTHON:-python3}
mkdir -p "$out"
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1

part() { # name, seconds, command
    name=$1 limit=$2
    shift 2
    started=$SECONDS
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
    echo "$name: status $? after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
}

wanted() {
    [ ${#parts[@]} -eq 0 ] || [[ " ${parts[*]} " == *" $1 "* ]]
}
parts=("$@")

{
    git describe --always --dirty=+ 2>/dev/null || echo "no repository here"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    $python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
} >"$out/summary.txt" 2>&1

round=($python -m benchmarks.round --gpu 0 --image_size 224 --file_size 224 --images 480
    --batch_size 48 --repeats 3)
wanted tests && part tests 60 $python -m pytest -p no:cacheprovider tests/speed tests/device
wanted demo && part demo 60 $python train_main.py --preset demo --gpu 0 --progress 0 --run_dir "$out/demo"
wanted round && part round_plain 100 "${round[@]}" --compile off
wanted round && part round_compiled 150 "${round[@]}" --compile on --unchecked
wanted paper && part paper 200 $python -m benchmarks.gpu paper --repeats 5
wanted precision && part precision 120 $python -m benchmarks.gpu precision --repeats 1
rm -rf "$out/demo/checkpoints" "$out/demo/tb"
cat "$out/summary.txt"
