"""Loading a model and running it: devices, limits, progress."""
