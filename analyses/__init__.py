"""Analyses, one file each: a pure function on tensors, and a metric that streams it over images."""
