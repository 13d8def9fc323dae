#!/bin/bash
# workflow: 4 nodes of summit for 01:00:00
# Made by `exex jobscript` for summit; change what you like. Start it by `bsub`, or by `bash` in the shell of a `bsub -Is`.
# It runs on a launch node; jsrun starts the ranks on the compute nodes.
#
#BSUB -J workflow
#BSUB -nnodes 4
#BSUB -W 1:00
#BSUB -q batch
#BSUB -P ABC123
#BSUB -alloc_flags "smt1 nvme"
#BSUB -o workflow-%J.out

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${LSB_JOBID:?this is a job script: submit it with bsub}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Compute nodes cannot start jsrun. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
/home/ada/exex/bin/python -m exex launch-helper --launcher jsrun "$EXEX_LAUNCH_HELPER" &
helper=$!

# One rank on each node, with 42 slots. Rank 0 is the manager as well.
# LSF tells nobody when the job ends: SECONDS counts from the start of this shell.
jsrun -n 4 -r 1 -a 1 -c 42 -g 6 -b none -d packed \
    /home/ada/exex/bin/python -m exex.run --walltime "$((3600 - SECONDS))" --slots 42 \
    -- workflow.py &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap ':' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

kill -HUP "$helper" 2>/dev/null && wait "$helper"

exit "$status"
