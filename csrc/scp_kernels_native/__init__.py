"""Installed as ``scp_kernels_native``: the folder of the compiled libraries and of ``build.json``."""
