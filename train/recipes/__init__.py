"""Recipes: complete settings of a run, as YAML."""
