"""One model in several processes: the process group, strategies, sharded tensors, the session of a process."""
