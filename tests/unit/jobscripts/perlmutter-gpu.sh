#!/bin/bash
# workflow: 2 nodes of perlmutter-gpu for 00:30:00
# Made by `exex jobscript` for perlmutter-gpu; change what you like. Start it by `sbatch`, or by `bash` in the shell of an `salloc`.
#
#SBATCH --job-name=workflow
#SBATCH --nodes=2
#SBATCH --time=00:30:00
#SBATCH --qos=debug
#SBATCH --account=m1234
#SBATCH --constraint=gpu
#SBATCH --gpus-per-node=4
#SBATCH --output=workflow-%j.out
# When a node fails, the others go on.
#SBATCH --no-kill
#SBATCH --signal=B:USR2@120

export PMI_NO_FORK=1

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${SLURM_JOB_ID:?this is a job script: submit it with sbatch}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# One rank on each node, with 64 slots. Rank 0 is the manager as well.
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --gpus-per-task=4 --export=ALL \
    --kill-on-bad-exit=0 --no-kill \
    /home/ada/exex/bin/python -m exex.run --slots 64 \
    -- workflow.py &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap 'kill -USR2 "$launcher"' USR2
trap ':' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

exit "$status"
