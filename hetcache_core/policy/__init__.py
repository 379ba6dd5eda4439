"""What policies are composed of: pieces, recipes, partial steps, guards and signals."""
