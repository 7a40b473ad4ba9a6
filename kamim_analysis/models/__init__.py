"""Families of encoders, one file each.

A family says which timm models are its own, what they are made of (`describe`), and how timm is asked for
other sizes (`arguments`). The rest of the code knows encoders by their `Anatomy` alone.
"""
