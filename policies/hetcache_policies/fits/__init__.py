"""Published coefficients."""
