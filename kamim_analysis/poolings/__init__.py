"""Poolings, one file each: how one feature of an image is made of the tokens of a layer.

Each file exports one class, named as the file, deriving from `_pooling.Pooling`; a learned one from `QueryPooling`.
"""
