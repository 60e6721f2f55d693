#!/bin/sh
# The main job on the model that ships with the repository: factorize, fine-tune the router, evaluate, answer prompts; on three ranks.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
rm -rf runs/demo
exec mpirun -n "${RANKS:-3}" build/factorllm run configs/demo.yaml
