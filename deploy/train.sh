#!/usr/bin/env bash
# From data to a bundle: reasoning network (SFT, and GRPO where asked for), bundle, probe. Every stage resumes where it stopped.
#
#   deploy/train.sh runs/demo                 the embedded demo from nothing, base model and all: made for a GPU
#   deploy/train.sh runs/demo --quick         every stage, in a quarter of an hour on two cores; the answers are still guesses
#   MODEL=Qwen/Qwen3-1.7B DATA=open-r1/OpenR1-Math-220k:default:train BACKBONE=Qwen/Qwen3-Embedding-0.6B \
#     deploy/train.sh runs/qwen3-1.7b         the paper's recipe for another base, on one GPU
#
# GRPO=100 adds as many steps of stage 2.
set -euo pipefail
out=${1:?Usage: deploy/train.sh OUTPUT [--quick]}
quick=${2:-}
latents=16 base=(--steps 4000 --batch-tokens 16000) grpo=() fit=(--ladder 2,4,8) pack=()

if [[ -z ${MODEL:-} ]]; then
  model=$out/base
  sft=(--num-latents 32 --min-latents 1 --rest-share 0.2) pack=(--thinks-on --max-prompt-tokens 256)
  if [[ $quick == --quick ]]; then
    base=(--steps 170) sft+=(--steps 120 --batch-size 24) fit=(--n 400 --explicit-questions 100 --max-thinking-tokens 256)
  else
    sft+=(--steps 24000 --batch-size 256 --max-prompt-tokens 576 --compiled)
  fi
  latentserve demo train-base --output "$model" "${base[@]}"
else
  model=$MODEL latents=256
  data=(--data "${DATA:?Which questions? DATA=path or id}" --preset "${PRESET:-openr1-math}")
  sft=("${data[@]}" --backbone "${BACKBONE:?Which network? BACKBONE=Qwen/Qwen3-Embedding-0.6B}" --conditioner last
    --num-latents 256 --nested-from 1 --steps 10000 --batch-size 8 --accumulate 8 --schedule cosine --muon-lr 0.001
    --adamw-lr 0.001 --milestone-weight 0 --max-reply-tokens 2048 --checkpointing)
  grpo=("${data[@]}" --num-latents 256 --max-tokens 2048)
  fit=("${data[@]}" --max-reply-tokens 2048 --max-thinking-tokens 8192)
fi

latentserve train sft --model "$model" --output "$out/sft" "${sft[@]}"
net=$out/sft
if [[ -n ${GRPO:-} ]]; then
  latentserve train grpo --model "$model" --init "$out/sft" --output "$out/grpo" --steps "$GRPO" "${grpo[@]}"
  net=$out/grpo
fi
latentserve bundle --model "$model" --net "$net" --output "$out/bundle" --num-latent-tokens "$latents" "${pack[@]}"
latentserve router fit --model "$model" --bundle "$out/bundle" "${fit[@]}"
if [[ -z ${MODEL:-} && -z $quick ]]; then  # greedy answers are surer than those that it was fitted on
  latentserve router calibrate --bundle "$out/bundle" --explicit-share 0.2
fi
echo "Serve it: latentserve serve --model $model --bundle $out/bundle"
