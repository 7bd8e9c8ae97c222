"""Converting weights that are there: their owner, the run, what is seen of it."""
