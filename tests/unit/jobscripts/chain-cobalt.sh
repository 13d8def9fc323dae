#!/bin/bash -l
#COBALT --jobname workflow
#COBALT -n 256
#COBALT -t 06:00:00
#COBALT -q default
#COBALT -A Catalyst
#COBALT --attrs mcdram=cache:numa=quad:filesystems=home,theta-fs0

# workflow: 256 nodes of theta for 06:00:00
# Made by `exex jobscript` for theta; change what you like. Make it executable and start it by `qsub`. Cobalt's
# directives must stand together, from the second line on.

export PMI_NO_FORK=1
export MPICH_GNI_FORK_MODE=FULLCOPY

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${COBALT_JOBID:?this is a job script: submit it with qsub}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Jobs that may follow this one, each with one less: a chain that gets nowhere comes to its end. None follows a job that is
# told to end. This script is kept for them.
left=${EXEX_CHAIN:-3}
unset EXEX_CHAIN
cp "$0" "$EXEX_JOB_DIR/job.sh"

# Compute nodes cannot start aprun. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
/home/ada/exex/bin/python -m exex launch-helper --launcher aprun "$EXEX_LAUNCH_HELPER" &
helper=$!

# One rank on each node, with 64 slots. Rank 0 is the manager as well.
aprun -n 256 -N 1 -d 64 -j 1 -cc none -b \
    /home/ada/exex/bin/python -m exex.run --slots 64 --start-timeout-s 300 --journal workflow.journal --resume \
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
    qsub --env EXEX_CHAIN=$((left - 1)) "$EXEX_JOB_DIR/job.sh"
fi

exit "$status"
