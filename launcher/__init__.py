"""Starting runs and seeing them through, on this machine or as jobs of SLURM; what a machine and a
recipe amount to. Fast to import, no torch."""
