"""crystalline: trains small language models on ordinary CPUs."""
