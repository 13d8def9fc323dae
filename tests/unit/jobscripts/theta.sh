#!/bin/bash -l
#COBALT --jobname workflow
#COBALT -n 128
#COBALT -t 03:00:00
#COBALT -q default
#COBALT -A Catalyst
#COBALT --attrs mcdram=cache:numa=quad:filesystems=home,theta-fs0

# workflow: 128 nodes of theta for 03:00:00
# Made by `exex jobscript` for theta; change what you like. Make it executable and start it by `qsub`. Cobalt's
# directives must stand together, from the second line on.

export PMI_NO_FORK=1
export MPICH_GNI_FORK_MODE=FULLCOPY

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${COBALT_JOBID:?this is a job script: submit it with qsub}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Compute nodes cannot start aprun. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
/home/ada/exex/bin/python -m exex launch-helper --launcher aprun "$EXEX_LAUNCH_HELPER" &
helper=$!

# One rank on each node, with 64 slots. Rank 0 is the manager as well.
aprun -n 128 -N 1 -d 64 -j 1 -cc none -b \
    /home/ada/exex/bin/python -m exex.run --slots 64 \
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
