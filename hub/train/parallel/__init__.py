"""One model in several processes: the group of ranks, and the strategies by which they hold it."""
