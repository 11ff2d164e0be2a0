"""Phantoms in the layouts of the real data: what the demo and the tests run on, since neither set may be redistributed.

Realistic: the files (names, axes, shapes, spacings, types, label values, header faults), the average anatomy of the
brain, tissue contrasts, bias fields, noise, and where brain lesions lie. Not realistic: pathology is made of soft
ellipsoids, the abdomen of some forty analytic shapes, every brain descends from one template, and look-alikes are drawn
by the same rule as lesions, which disease does not obey. Scores on phantoms say that software works, not how well it
would do on patients.
"""

from scp_models.phantoms.lits import generate_lits
from scp_models.phantoms.wmh import generate_wmh

__all__ = ["generate_lits", "generate_wmh"]
