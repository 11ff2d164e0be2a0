"""What the paper prints: Tables 1 and 2."""

from typing import NamedTuple


class PaperScores(NamedTuple):
    """A row of Table 1 or 2, in per cent."""

    dice: float
    lesion_dice: float
    lesion_f1: float
    lesion_ppv: float
    lesion_tpr: float


PRINTED_CAPACITIES = (128, 256, 512)
PRINTED_VARIANTS = {"Base": "base", "Base F": "base_f", "Base B": "base_b", "SCP": "scp"}

WMH = {
    "Base 128": PaperScores(67.41, 51.53, 57.53, 58.48, 56.62),
    "Base F 128": PaperScores(27.94, 24.41, 31.91, 45.25, 24.64),
    "Base B 128": PaperScores(40.95, 31.44, 38.24, 90.95, 24.21),
    "SCP 128": PaperScores(74.47, 61.30, 66.39, 67.28, 65.53),
    "Base 256": PaperScores(75.29, 64.90, 69.40, 71.09, 67.78),
    "Base F 256": PaperScores(59.39, 39.67, 47.22, 44.37, 50.45),
    "Base B 256": PaperScores(67.82, 56.74, 64.02, 83.41, 51.95),
    "SCP 256": PaperScores(77.63, 69.55, 72.27, 69.78, 74.95),
    "Base 512": PaperScores(75.39, 65.61, 70.50, 67.74, 73.50),
    "Base F 512": PaperScores(62.63, 45.85, 54.10, 54.48, 53.73),
    "Base B 512": PaperScores(74.90, 63.89, 69.97, 81.67, 61.20),
    "SCP 512": PaperScores(77.28, 70.34, 73.89, 75.89, 72.00),
}
LITS = {
    "Base 128": PaperScores(55.57, 45.76, 67.29, 61.20, 74.73),
    "Base F 128": PaperScores(55.13, 48.76, 68.65, 64.84, 72.94),
    "Base B 128": PaperScores(57.39, 48.11, 65.71, 58.91, 74.29),
    "SCP 128": PaperScores(61.21, 50.13, 68.03, 58.90, 80.50),
    "Base 256": PaperScores(67.59, 53.60, 72.58, 63.46, 84.77),
    "Base F 256": PaperScores(54.08, 46.78, 66.44, 63.24, 69.98),
    "Base B 256": PaperScores(69.63, 50.33, 67.84, 56.01, 86.02),
    "SCP 256": PaperScores(72.71, 59.70, 75.11, 64.86, 89.20),
    "Base 512": PaperScores(71.36, 48.80, 67.98, 54.69, 89.80),
    "Base F 512": PaperScores(56.64, 48.59, 65.22, 55.85, 78.39),
    "Base B 512": PaperScores(73.33, 49.15, 67.57, 53.82, 90.75),
    "SCP 512": PaperScores(73.64, 49.05, 66.25, 52.71, 89.16),
}
SCORES = {"wmh": WMH, "lits": LITS}

PRINTED_MEMORY = {
    "Base 128": 1.00, "Base F 128": 1.06, "Base B 128": 1.17, "SCP 128": 1.78,
    "Base 256": 2.13, "Base F 256": 2.19, "Base B 256": 2.43, "SCP 256": 3.69,
    "Base 512": 4.84, "Base F 512": 4.90, "Base B 512": 5.39, "SCP 512": 7.94,
}  # fmt: skip
"""Table 1's column of memory, as ratios to Base 128; its other two are in :mod:`scp_models.networks.complexity`."""
