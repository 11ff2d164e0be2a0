"""The version, read by setup and by `scp_kernels.__version__` alike."""

__version__ = "0.1.0"
