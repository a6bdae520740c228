"""Layers that at least two families share."""
