"""Figures: one module for each, drawn from a results directory only; and the report that shows them."""
