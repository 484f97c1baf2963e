#!/usr/bin/env bash
# Makes the shipped network from nothing but the data: bash benchmarks/ship.sh FACES WORK [more settings of the training]
# FACES holds celeba/, lfw/, real_labelled/ and protocol/ (see small_real.py); everything is written below WORK.
# It can be stopped and started again: what is done is kept, training goes on where it was.
set -euo pipefail
faces=$(realpath "$1") work=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

# faces cut wide for both networks; nobody to be tested on is among the people of train_people.txt
"$python" benchmarks/small_real.py --recipe trunks --faces "$faces" --work "$work"
read -ra options <"$work/trunks_options.txt"
runs=$work/Model_training_checkpoints

# the two networks as they come, as a checkpoint to put a straightener into (a step with a rate of nothing)
if [ ! -f "$work/straight.pt" ]; then
    [ -f "$runs/begin/last.pt" ] || "$python" train_maskV9.py --recipe trunks "${options[@]}" --run_name begin \
        --epochs 1 --train_batch_size 4 --num_train_triplets 4 --learning_rate_schedule "[(0, 1e-12)]"
    "$python" Training/train_straightener.py --checkpoint "$runs/begin/last.pt" --data_path "$work/photos" \
        --faces "${STRAIGHTENER_FACES:-300000}" --cache_path "$work/cache" --precision bfloat16 --output "$work/straight.pt"
fi

# twice 31,104 images from the same start, with other random numbers; the network is the mean of the two runs' weights
for seed in 0 1; do
    if [ -f "$runs/ship_$seed/last.pt" ]; then
        "$python" train_maskV9.py --resume "$runs/ship_$seed/last.pt"
    else
        "$python" train_maskV9.py --recipe trunks "${options[@]}" --run_name "ship_$seed" --seed "$seed" \
            --init_from "$work/straight.pt" --epochs 3 --num_train_triplets 3456 "$@"
    fi
done
rm -f "$work/mean.pt"
"$python" Training/average_weights.py "$runs/ship_0/last.pt" "$runs/ship_1/last.pt" --output "$work/mean.pt"

# what distances mean, on people of three sources that nobody trained on and nobody is tested on
"$python" Evaluation/calibration.py --checkpoint "$work/mean.pt" --data_path "$faces/lfw" "$faces/celeba" \
    --real "$faces/real_labelled" --people "$work/calibration_people.txt" --photos_per_person 40 \
    --cache_path "$work/cache" --average_flip --half --output "$work/shipped.pt"
"$python" benchmarks/small_real.py --faces "$faces" --work "$work" --name_doubles "$work/shipped.pt"
echo "made $work/shipped.pt; its odds: $python benchmarks/odds.py --checkpoint $work/shipped.pt --faces $faces --work $work"
