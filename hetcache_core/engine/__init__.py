"""The one loop that asks, computes and stores; nobody outside core imports it."""
