"""Hybrid retrieval benchmarks: rivals, the measuring harness and the alignment study."""
