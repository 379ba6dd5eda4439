"""Backbones in diffusers."""
