"""``scp-models demo``: phantoms, trainings, scores and a page, in a few minutes."""
