"""Keypoint detectors and controls that are none, one file each, which exports one class: a frozen dataclass of its
parameters."""
