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

export EXEX_SCRATCH=/local/scratch
export PALS_PING_PERIOD=240
export PALS_RPC_TIMEOUT=240

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-$PBS_JOBID"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# Jobs that may follow this one, each with one less: a chain that gets nowhere comes to its end. None follows a job that is
# told to end. This script is kept for them.
left=${EXEX_CHAIN:-1}
unset EXEX_CHAIN
cp "$0" "$EXEX_JOB_DIR/job.sh"

# First every node gets what is to be staged, by one rank on each, and says in the file `staged` how ranks start from there.
words=(--slots 32 --stage-file 'a b:t' --journal workflow.journal --resume \
    -- workflow.py)
rm -f "$EXEX_JOB_DIR/staged"
mpiexec -n 10 --ppn 1 --cpu-bind none --no-transfer \
    /home/ada/exex/bin/python -m exex.stage "${words[@]}"
if [ ! -e "$EXEX_JOB_DIR/staged" ]; then
    echo "exex: the job ends, because it could not be staged" >&2
    exit 1
fi

# One rank on each node, with 32 slots. Rank 0 is the manager as well.
# PBS tells nobody when the job ends: SECONDS counts from the start of this shell.
mpiexec -n 10 --ppn 1 --cpu-bind none --no-transfer --no-abort-on-failure \
    /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex --walltime "$((3600 - SECONDS))" "${words[@]}" &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
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
    qsub -v EXEX_CHAIN=$((left - 1)) "$EXEX_JOB_DIR/job.sh"
fi

# What was staged goes with the last rank of each node. A world that has failed may not have had all of them.
if [ "$status" -ne 0 ]; then
    timeout 60 mpiexec -n 10 --ppn 1 --cpu-bind none --no-transfer \
        /bin/sh -c "$(<"$EXEX_JOB_DIR/staged")" exex --remove
fi

exit "$status"
