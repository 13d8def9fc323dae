#!/bin/bash
# workflow: 4 nodes of midway for 01:00:00
# Made by `exex jobscript` for midway; change what you like. Start it by `sbatch`, or by `bash` in the shell of an `salloc`.
#
#SBATCH --job-name=workflow
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --partition=caslake
#SBATCH --account=pi-ada
#SBATCH --output=workflow-%j.out
# When a node fails, the others go on.
#SBATCH --no-kill

module load openmpi

# exex leaves its exit status in this directory. After the loss of a rank that of the launcher says little.
export EXEX_JOB_DIR="$PWD/runinfo/job-${SLURM_JOB_ID:?this is a job script: submit it with sbatch}"
mkdir -p "$EXEX_JOB_DIR" && rm -f "$EXEX_JOB_DIR/status"

# One rank on each node, with 48 slots. Rank 0 is the manager as well.
mpiexec -n 4 --map-by ppr:1:node --bind-to none --with-ft ulfm \
    /home/ada/exex/bin/python -m exex.run --slots 48 \
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
