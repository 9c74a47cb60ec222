"""Training runs: configuration, loop, and what they leave behind."""
