"""Pretraining, linear probe and fine-tuning: recipes, objectives, the loop."""
