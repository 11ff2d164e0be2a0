"""setuptools' build backend. As a module of this project (``backend-path``), it lets ``setup.py`` import the others."""

from setuptools.build_meta import *  # noqa: F403
