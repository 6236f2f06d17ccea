#!/usr/bin/env bash
# Trains SynergyNet as published, on every GPU of this machine.
#
#   bash train_script.sh                    one GPU or several
#   bash train_script.sh --pack runs/packed --compile      from one file, compiled: for one fast GPU
#   GPUS=1 bash train_script.sh --resume    options go to main_train.py
#   CPU=1 bash train_script.sh              smaller settings, for a machine without a GPU
#
# The data lies where the published download puts it: 3dmm_data/ and train_aug_120x120/ (README.md).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
if ! found=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2> /dev/null); then
    echo "$python has no torch that works: run \`make build\`, or name another with PYTHON=..." >&2
    exit 2
fi
gpus=${GPUS:-$found}

settings=(
    --backbone mobilenet_v2      # 2.3 M weights, 4.1 M with the two point networks
    --heads published            # refiner and inverse regressor end in a ReLU, as published
    --loop full                  # all five loss terms
    --augment published          # colour jitter, 5-pixel border, 1 % occlusions
    --optimizer sgd              # Nesterov momentum 0.9
    --schedule published         # 0.2 / 1 / 0.2 / 0.04 times the peak from epoch 1 / 6 / 49 / 65 on
    --lr 0.08                    # the peak
    --weight-decay 5e-4
    --batch-size 1024            # of all GPUs together
    --epochs 80
    --save_val_freq 10           # keep every tenth epoch's weights
    --workers 8                  # threads that read pictures
    --out runs/synergynet
)
if [ -n "${CPU:-}" ]; then
    # 80 epochs of 636,252 faces would take a CPU weeks: fewer, smaller, another optimiser
    settings+=(
        --device cpu --workers 2 --train-size 96 --batch-size 64 --epochs 10
        --samples-per-epoch 20480 --optimizer adamw --lr 1e-3 --weight-decay 0.02
        --schedule linear --warmup 300 --cooldown 4 --clip-norm 5 --out runs/synergynet_cpu
    )
    gpus=0
elif [ "$gpus" -eq 0 ]; then
    echo "No NVIDIA GPU here. CPU=1 bash train_script.sh trains with smaller settings;" >&2
    echo "on another accelerator: python main_train.py --device mps (settings in this file)." >&2
    exit 2
fi

if [ "$gpus" -gt 1 ]; then
    # an address, because the machine's own name need not lead to one: it would be waited for
    exec "$python" -m torch.distributed.run --standalone --local-addr 127.0.0.1 \
        --nproc_per_node "$gpus" \
        "$root/main_train.py" "${settings[@]}" "$@"
fi
exec "$python" "$root/main_train.py" "${settings[@]}" "$@"
