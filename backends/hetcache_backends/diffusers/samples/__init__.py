"""Small random models of the described classes, and a pipeline around each."""
