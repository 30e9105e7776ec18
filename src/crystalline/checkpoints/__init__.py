"""A model's folder: written whole or not at all, read back, kept, claimed, looked into."""
