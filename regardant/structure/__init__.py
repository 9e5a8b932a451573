"""Networks larger than a mixer: heads, memories, poolers, whole models."""
