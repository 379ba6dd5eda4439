"""What is installed, what is wrong with it, and whether it keeps its contract."""
