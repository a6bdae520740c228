"""The configuration of a run: its schema, and how presets, files and overrides become one."""
