"""Video and picture files."""
