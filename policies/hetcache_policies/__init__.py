"""The built-in caching policies: one module for each, citing its paper."""
