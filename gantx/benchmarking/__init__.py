"""How fast a machine trains, generates and scores a preset: measured on random weights and random pixels."""
