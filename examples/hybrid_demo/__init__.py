"""The parts of the demo of hybrid retrieval; run `make demo`."""
