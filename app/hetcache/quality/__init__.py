"""How near a video is to another, and how good it is."""
