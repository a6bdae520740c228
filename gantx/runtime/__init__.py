"""What a process computes with: types, captured steps."""
