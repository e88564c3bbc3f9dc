"""The parts of the demo of networks under faults; run `make demo`."""
