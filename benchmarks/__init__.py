"""Benchmarks, one package a system; each keeps its committed results beside its scripts."""
