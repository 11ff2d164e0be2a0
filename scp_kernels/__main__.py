"""``python -m scp_kernels``: versions, what was built at install, and why each backend can or cannot run."""

import argparse
import importlib.metadata
import json
import platform
import sys
from io import TextIOWrapper
from typing import Any

import torch

from scp_kernels import __version__, available_backends
from scp_kernels.backends._libraries import build_record


def report() -> dict[str, Any]:
    """All that a bug report should say about an installation, as plain data."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    return {
        "scp_kernels": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": triton,
        "build": build_record(),
        "backends": {name: {"usable": s.usable, "reason": s.reason} for name, s in available_backends().items()},
    }


def _sentence(library: dict[str, Any]) -> str:
    """One library of the build record, in words."""
    if not library["built"]:
        return f"not built: {library['reason']}"
    return f"built by {library['compiler']} for {', '.join(library['variants'])}"


def main() -> int:
    if isinstance(sys.stdout, TextIOWrapper):
        # A compiler's reasons have characters that not every terminal has: better a "?" than a crash.
        sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m scp_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    facts = report()
    if parser.parse_args().json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"scp_kernels {facts['scp_kernels']}, Python {facts['python']}, {facts['platform']}")
    print(f"torch {facts['torch']} (CUDA {facts['torch_cuda'] or 'none'}), triton {facts['triton'] or 'not installed'}")
    print("\nBuilt at install:")
    for name, library in facts["build"].items():
        print(f"  {name:<10}{_sentence(library)}")
    print('\nBackends, in the order in which "auto" tries them:')
    for name, state in facts["backends"].items():
        print(f"  {name:<10}{'usable' if state['usable'] else 'not usable: ' + state['reason']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
