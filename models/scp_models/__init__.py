"""Training, evaluation and prediction of lesion segmentation networks with spatially covariant heads."""
