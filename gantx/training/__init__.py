"""The adversarial training of two networks."""
