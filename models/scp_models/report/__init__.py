"""Figures and pages of results, and the demo that makes them."""
