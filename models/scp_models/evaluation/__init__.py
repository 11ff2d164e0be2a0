"""Scores of segmentations against references, tables of them, and paired comparisons."""
