"""Edits of language models, and of what else attends along a sequence."""
