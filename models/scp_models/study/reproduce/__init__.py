"""``scp-models reproduce``: the paper's study, end to end, beside the figures that the paper prints."""
