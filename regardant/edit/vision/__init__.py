"""Edits of models that look at images."""
