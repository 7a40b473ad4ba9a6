"""The papers' tables, one file each, with measured numbers below the papers' own; drawn from results alone."""
