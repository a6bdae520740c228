"""Official checkpoints: their key layouts mapped to ours, their files read without running code from them."""
