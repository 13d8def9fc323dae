#!/bin/bash -l
# @{title}
# Made by `exex jobscript` for @{machine}; change what you like. Start it by `qsub`, or by `bash` in the shell of a `qsub -I`.
#
#PBS -N @{name}
@{request}
#PBS -l walltime=@{walltime}
@{queue}
@{account}
@{directives}
# One file for both outputs, written while the job runs.
#PBS -j oe
#PBS -k doe

cd "${PBS_O_WORKDIR:?this is a job script: submit it with qsub}" || exit

@{modules}
@{environment}
@{setup}

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="@{run_dir}/job-$PBS_JOBID"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"
@{keep}

@{stage}

@{helper}

# @{shape}
# PBS tells nobody when the job ends: SECONDS counts from the start of this shell.
@{command} &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
trap '@{on_term}' TERM
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ -e "$EXEX_JOB_DIR/status" ]; then
    status=$(<"$EXEX_JOB_DIR/status")
elif [ "$status" -eq 0 ]; then
    status=1 # it was ended from outside, whatever the launcher says
fi

@{end_helper}

@{chain}

@{unstage}

exit "$status"
