"""Editing a video: what is asked for, how it is fitted, and what comes out."""
