"""Finding plugins, and what they provide."""
