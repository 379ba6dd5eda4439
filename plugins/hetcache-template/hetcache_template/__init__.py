"""A caching policy for hetcache, to copy."""
