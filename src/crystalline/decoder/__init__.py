"""The decoder: its weights, its steps forward and backward, and the memory they work in."""
