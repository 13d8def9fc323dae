#!/bin/bash
# @{title}
# Made by `exex jobscript` for @{machine}; change what you like. Start it by `sbatch`, or by `bash` in the shell of an `salloc`.
#
#SBATCH --job-name=@{name}
@{request}
#SBATCH --time=@{walltime}
@{queue}
@{account}
@{directives}
#SBATCH --output=@{name}-%j.out
# When a node fails, the others go on.
#SBATCH --no-kill
@{signal}

@{modules}
@{environment}
@{setup}

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="@{run_dir}/job-${SLURM_JOB_ID:?this is a job script: submit it with sbatch}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"
@{keep}

@{stage}

@{helper}

# @{shape}
@{command} &
launcher=$!

# A signal interrupts `wait`: wait again until the launcher has ended. What tells this shell to end tells the ranks, too.
@{on_signal}
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
