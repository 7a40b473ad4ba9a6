"""Layouts of weights files, one file each, recognised from the keys and shapes of the state dict alone.

A layout's first line says whose files it is for, `REQUIRED` which keys such a file has, `BRANCHES` under which prefixes
its encoders lie, and `RULES` what each key is called in timm; `convert` then reads the architecture off the shapes.
A key that no rule knows refuses the layout: nothing is dropped in silence.
"""
