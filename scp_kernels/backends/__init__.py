"""The compiled backends. Each offers what :class:`scp_kernels.dispatch.Backend` lists.

Import them as ``from scp_kernels.backends import …``: the attribute ``scp_kernels.backends`` is the public function.
"""
