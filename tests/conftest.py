"""Makes ``benchmarks`` importable, as ``python -m benchmarks.…`` has it; behind the installed packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
