"""The parts that backbones are made of; they work on maps [b, h, w, c] and on tokens [b, n, c]."""
