"""Comparisons of policies: the grid, its runs, and what is made of their results."""
