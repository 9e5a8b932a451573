"""Changes to a running pretrained model: nothing retrained, undone on exit."""
