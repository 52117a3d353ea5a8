"""The paper's tables, figure and claims beside its own numbers, from the files of run folders and nothing else."""
