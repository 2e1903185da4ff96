"""Ray, the loop and the run directory. Importing it settles Ray's environment, which must precede ``import ray``."""

from frontier_tune.orchestration import cluster as cluster
