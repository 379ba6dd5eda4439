"""The folder of a comparison, and what its rows are summed up to."""
