"""The parts of crystalline.kernels."""
