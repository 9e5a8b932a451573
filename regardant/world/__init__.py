"""Models to try edits and lenses on."""
