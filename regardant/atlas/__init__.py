"""The atlas: one card a paper, the evidence on it, and what can be computed from the two.

Nothing in this folder imports torch, so that `list`, `show`, `search` and `status` answer at once.
"""
