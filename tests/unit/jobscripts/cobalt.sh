#!/bin/bash -l
#COBALT --jobname workflow
#COBALT -n 4
#COBALT -t 01:00:00
#COBALT -q default

# workflow: 4 nodes of cobalt for 01:00:00
# Made by `exex jobscript` for cobalt; change what you like. Make it executable and start it by `qsub`. Cobalt's
# directives must stand together, from the second line on.

export HYDRA_RMK=cobalt

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${COBALT_JOBID:?this is a job script: submit it with qsub}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# One rank on each node, with a slot for each core that it finds. Rank 0 is the manager as well.
mpiexec -n 4 -ppn 1 -bind-to none -genv I_MPI_PIN off -disable-auto-cleanup \
    /home/ada/exex/bin/python -m exex.run \
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

exit "$status"
