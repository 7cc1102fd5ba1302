# Sourced by the job scripts: what a job needs before `elemdist` runs. Adapt it to your cluster.
#
# ELEMDIST_HOME is the checkout; the folder where sbatch was called, unless it is set.

export ELEMDIST_HOME="${ELEMDIST_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"

# module load python/3.11 cuda/13.0

if [ -f "$ELEMDIST_HOME/.venv/bin/activate" ]; then
    source "$ELEMDIST_HOME/.venv/bin/activate"
fi

# What `elemdist launch` was told to run first (slurm.setup in the settings of a cluster), unless it
# is for the job that this one was submitted in.
if [ -n "${ELEMDIST_SETUP:-}" ] && [ "${ELEMDIST_LAUNCHED:-}" = "${1:-}" ]; then
    source "$ELEMDIST_SETUP"
fi
