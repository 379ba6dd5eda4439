"""Pieces that several policies are made of."""
