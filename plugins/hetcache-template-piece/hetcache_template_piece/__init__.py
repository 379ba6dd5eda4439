"""A context selector for hetcache, to copy."""
