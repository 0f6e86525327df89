"""Places that run the nodes of a grid: processes of this machine, Ray tasks, Slurm arrays and Kubernetes job sets."""
