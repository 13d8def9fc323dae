#!/bin/bash -l
# workflow: 10 nodes of polaris for 01:00:00
# Made by `exex jobscript` for polaris; change what you like. Start it by `qsub`, or by `bash` in the shell of a `qsub -I`.
#
#PBS -N workflow
#PBS -l select=10:system=polaris
#PBS -l place=scatter
#PBS -l walltime=01:00:00
#PBS -q prod
#PBS -A Ocean
#PBS -l filesystems=home:eagle
# One file for both outputs, written while the job runs.
#PBS -j oe
#PBS -k doe

cd "${PBS_O_WORKDIR:?this is a job script: submit it with qsub}" || exit

export PALS_PING_PERIOD=240
export PALS_RPC_TIMEOUT=240

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-$PBS_JOBID"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# One rank on each node, with 32 slots. Rank 0 is the manager as well.
# PBS tells nobody when the job ends: SECONDS counts from the start of this shell.
mpiexec -n 10 --ppn 1 --cpu-bind none --no-transfer --no-abort-on-failure \
    /home/ada/exex/bin/python -m exex.run --walltime "$((3600 - SECONDS))" --slots 32 \
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
