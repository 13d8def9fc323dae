#!/bin/bash -l
# workflow: 64 nodes of blue-waters for 01:00:00
# Made by `exex jobscript` for blue-waters; change what you like. Start it by `qsub`, or by `bash` in the shell of a `qsub -I`.
# It runs on a service node; aprun starts the ranks on the compute nodes.
#
#PBS -N workflow
#PBS -l nodes=64:ppn=32:xe
#PBS -l walltime=01:00:00
#PBS -q normal
#PBS -j oe

cd "${PBS_O_WORKDIR:?this is a job script: submit it with qsub}" || exit

export PMI_NO_FORK=1
export MPICH_GNI_FORK_MODE=FULLCOPY

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-$PBS_JOBID"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# First every node gets what is to be staged, by one rank on each, and says in the file `staged` how ranks start from there.
words=(--slots 32 --stage e.tar \
    -- workflow.py)
rm -f "$EXEX_JOB_DIR/staged"
aprun -n 64 -N 1 -d 1 -j 1 -cc none -b -q \
    /home/ada/exex/bin/python -m exex.stage "${words[@]}"
if [ ! -e "$EXEX_JOB_DIR/staged" ]; then
    echo "exex: the job ends, because it could not be staged" >&2
    exit 1
fi

# Compute nodes cannot start aprun. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
/home/ada/exex/bin/python -m exex launch-helper --launcher aprun "$EXEX_LAUNCH_HELPER" &
helper=$!

# One rank on each node, with 32 slots. Rank 0 is the manager as well.
# No compute node knows when the job ends: SECONDS counts from the start of this shell.
aprun -n 64 -N 1 -d 32 -j 1 -cc none -b \
    /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex --walltime "$((3600 - SECONDS))" "${words[@]}" &
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

# What was staged goes with the last rank of each node. A world that has failed may not have had all of them.
if [ "$status" -ne 0 ]; then
    timeout 60 aprun -n 64 -N 1 -d 1 -j 1 -cc none -b -q \
        /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex --remove
fi

exit "$status"
