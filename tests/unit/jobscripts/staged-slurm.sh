#!/bin/bash
# workflow: 8 nodes of comet for 01:00:00
# Made by `exex jobscript` for comet; change what you like. Start it by `sbatch`, or by `bash` in the shell of an `salloc`.
#
#SBATCH --job-name=workflow
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --partition=compute
#SBATCH --account=abc123
#SBATCH --output=workflow-%j.out
# When a node fails, the others go on.
#SBATCH --no-kill

export EXEX_SCRATCH="/scratch/$USER/$SLURM_JOB_ID"

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${SLURM_JOB_ID:?this is a job script: submit it with sbatch}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# First every node gets what is to be staged, by one rank on each, and says in the file `staged` how ranks start from there.
words=(--slots 24 --stage env.tar.zst \
    -- workflow.py)
rm -f "$EXEX_JOB_DIR/staged"
env 'SLURM_TASKS_PER_NODE=1(x8)' ibrun -n 8 \
    /home/ada/exex/bin/python -m exex.stage "${words[@]}"
if [ ! -e "$EXEX_JOB_DIR/staged" ]; then
    echo "exex: the job ends, because it could not be staged" >&2
    exit 1
fi

# One rank on each node, with 24 slots. Rank 0 is the manager as well.
env 'SLURM_TASKS_PER_NODE=1(x8)' ibrun -n 8 \
    /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex "${words[@]}" &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap ':' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

# What was staged goes with the last rank of each node. A world that has failed may not have had all of them.
if [ "$status" -ne 0 ]; then
    timeout 60 env 'SLURM_TASKS_PER_NODE=1(x8)' ibrun -n 8 \
        /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex --remove
fi

exit "$status"
