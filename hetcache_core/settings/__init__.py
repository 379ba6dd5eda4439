"""Settings: declared as fields, given as texts, mappings or values."""
