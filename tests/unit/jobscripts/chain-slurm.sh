#!/bin/bash
# workflow: 16 nodes of perlmutter-cpu for 48:00:00
# Made by `exex jobscript` for perlmutter-cpu; change what you like. Start it by `sbatch`, or by `bash` in the shell of an `salloc`.
#
#SBATCH --job-name=workflow
#SBATCH --nodes=16
#SBATCH --time=48:00:00
#SBATCH --qos=regular
#SBATCH --account=m1234
#SBATCH --constraint=cpu
#SBATCH --output=workflow-%j.out
# When a node fails, the others go on.
#SBATCH --no-kill
#SBATCH --signal=B:USR2@120

export PMI_NO_FORK=1

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${SLURM_JOB_ID:?this is a job script: submit it with sbatch}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Jobs that may follow this one, each with one less: a chain that gets nowhere comes to its end. None follows a job that is
# told to end. This script is kept for them.
left=${EXEX_CHAIN:-3}
unset EXEX_CHAIN
cp "$0" "$EXEX_JOB_DIR/job.sh"

# One rank on each node, with 128 slots. Rank 0 is the manager as well.
srun --nodes=16 --ntasks=16 --ntasks-per-node=1 --cpu-bind=none --export=ALL --kill-on-bad-exit=0 \
    --no-kill \
    /home/ada/exex/bin/python -m exex.run --slots 128 --journal workflow.journal --resume \
    -- workflow.py &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap 'kill -USR2 "$launcher"' USR2
trap 'left=0' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

# 75: the allocation has ended before the work. The next job goes on from the journal.
if [ "$status" -eq 75 ] && [ "$left" -gt 0 ]; then
    echo "exit status 75: submitting the next job; $((left - 1)) more may follow it"
    EXEX_CHAIN=$((left - 1)) sbatch "$EXEX_JOB_DIR/job.sh"
fi

exit "$status"
