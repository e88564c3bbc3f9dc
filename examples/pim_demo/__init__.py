"""The parts of the demo of compressed image generation; run `make demo`."""
