"""A small model, its pipeline and its backbone in plain torch."""
