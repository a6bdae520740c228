"""Execution: devices, compute types, random numbers, compilation, captured steps, signals."""
