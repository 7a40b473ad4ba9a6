"""Pretraining: recipes, objectives, the loop."""
