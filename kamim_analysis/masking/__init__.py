"""Masking strategies, one file each."""
