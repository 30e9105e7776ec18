"""A training from its beginning to its end: what is chosen, each step, saving, going on."""
