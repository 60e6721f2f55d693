#!/bin/bash
# Submits several jobs, each to start when the one before ended well:
#
#   deploy/slurm/chain.sh configs/factorize.yaml configs/finetune.yaml configs/eval.yaml
#
# Each may be requeued (exit code 75) any number of times before the next begins.  A `kind: pipeline` does the same in one allocation.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
after=
for job in "$@"; do
    id=$(sbatch --parsable ${after:+--dependency=afterok:$after} --job-name="$(basename "$job" .yaml)" "$here/job.sbatch" "$job")
    echo "$job: job ${id%%;*}${after:+, after $after}"
    after=${id%%;*}
done
