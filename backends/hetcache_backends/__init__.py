"""The built-in backbones: one module for each library's diffusion transformer."""
