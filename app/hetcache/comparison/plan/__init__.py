"""From options to a grid of runs."""
