"""Workers, what they are sent, and where their results arrive."""
