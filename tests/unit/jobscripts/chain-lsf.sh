#!/bin/bash
# workflow: 46 nodes of summit for 06:00:00
# Made by `exex jobscript` for summit; change what you like. Start it by `bsub`, or by `bash` in the shell of a `bsub -Is`.
# It runs on a launch node; jsrun starts the ranks on the compute nodes.
#
#BSUB -J workflow
#BSUB -nnodes 46
#BSUB -W 6:00
#BSUB -q batch
#BSUB -P ABC123
#BSUB -alloc_flags "smt1 nvme"
#BSUB -o workflow-%J.out

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${LSB_JOBID:?this is a job script: submit it with bsub}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Jobs that may follow this one, each with one less: a chain that gets nowhere comes to its end. None follows a job that is
# told to end. This script is kept for them.
left=${EXEX_CHAIN:-3}
unset EXEX_CHAIN
cp "$0" "$EXEX_JOB_DIR/job.sh"

# Compute nodes cannot start jsrun. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
/home/ada/exex/bin/python -m exex launch-helper --launcher jsrun "$EXEX_LAUNCH_HELPER" &
helper=$!

# One rank on each node, with 42 slots. Rank 0 is the manager as well.
# LSF tells nobody when the job ends: SECONDS counts from the start of this shell.
jsrun -n 46 -r 1 -a 1 -c 42 -g 6 -b none -d packed \
    /home/ada/exex/bin/python -m exex.run --walltime "$((21600 - SECONDS))" --slots 42 \
    --journal workflow.journal --resume \
    -- workflow.py &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap 'left=0' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

kill -HUP "$helper" 2>/dev/null && wait "$helper"

# 75: the allocation has ended before the work. The next job goes on from the journal.
if [ "$status" -eq 75 ] && [ "$left" -gt 0 ]; then
    echo "exit status 75: submitting the next job; $((left - 1)) more may follow it"
    EXEX_CHAIN=$((left - 1)) bsub "$EXEX_JOB_DIR/job.sh"
fi

exit "$status"
