"""Wan in DiffSynth."""
