"""Keypoint detectors, one file each. Each exports one class, a frozen dataclass of the detector's parameters."""
