"""Convert weights in memory: their owner, the run, its observation."""
