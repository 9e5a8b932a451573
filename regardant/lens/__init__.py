"""Measurements of what attention does: each returns data."""
