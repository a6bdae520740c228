"""The version of gantx."""

__version__ = "0.1.0"
