#!/usr/bin/env bash
# Installs SLURM and munge (Debian, Ubuntu; as root), for the tests of this folder.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
    echo "the cluster tests start a SLURM of their own, which only root can" >&2
    exit 2
fi
if command -v slurmctld slurmd munged sbatch >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "the cluster tests need SLURM: install slurmctld, slurmd, slurm-client and munge" >&2
    exit 2
fi
apt-get update -qq
# What starts by itself would take ports that the tests do not use anyway.
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
