"""Training with Lightning: the module, its loss, and the command ``scp-models fit``."""
