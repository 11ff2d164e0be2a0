"""Segmenting studies with a trained model; needs neither Lightning nor MONAI."""
