"""Shipped sweeps, one YAML file each."""
