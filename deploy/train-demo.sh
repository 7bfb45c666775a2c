#!/usr/bin/env bash
# Make the embedded demo from nothing: base model, reasoning network, probe, bundle. About two hours on two cores.
# Every stage resumes where it was stopped. Usage: deploy/train-demo.sh [OUTPUT]
set -euo pipefail
out=${1:-runs/demo}
latentserve demo train-base --output "$out/base"
latentserve train sft --model "$out/base" --output "$out/sft"
latentserve router fit --model "$out/base" --net "$out/sft" --output "$out/bundle"
echo "Serve it: latentserve serve --model $out/base --bundle $out/bundle --dtype float32 --enforce-eager"
