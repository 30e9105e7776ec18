"""Texts on their way to a model."""
