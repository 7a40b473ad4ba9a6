"""Layouts of weights files, one file each, recognised from the keys and shapes of the state dict alone."""
