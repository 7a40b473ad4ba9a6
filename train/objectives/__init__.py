"""Objectives, one file each; each exports one class, a frozen dataclass of the objective's settings.

The files import torch only inside functions, so that the command line can check settings without it.
"""
