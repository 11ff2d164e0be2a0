"""Fails when the operator has become slower beside its peers.

``pytest benchmarks --benchmark-only --short --record DIR`` and then ``python -m benchmarks.guard DIR/<machine>.json``
compare ratios taken within one run with the floors of ``benchmarks/floors.json`` for the machine's instruction set
(``torch.backends.cpu.get_cpu_capability()``: wider vectors do not help all entrants alike). After a change that makes
things faster, ``python -m benchmarks.guard --write RESULTS.json`` derives these floors anew from a record of an idle
machine.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

FLOORS = Path(__file__).parent / "floors.json"
# Machines differ and are shared: what is left of a ratio may fall to this part of what was recorded.
HEADROOM = 3


def floors(races: dict[str, Any], names: list[str]) -> dict[str, dict[str, float]]:
    """The floors that follow from recorded races: ratios over the headroom, two digits."""
    return {
        name: {
            who: float(f"{figure['ratio'] / HEADROOM:.2g}")
            for who, figure in races[name]["subjects"].items()
            if not figure["ours"]
        }
        for name in names
    }


def below_floor(races: dict[str, Any], floors: dict[str, dict[str, float]]) -> list[str]:
    """A sentence for each ratio under its floor, and for each race that has not been run."""
    problems = []
    for name, peers in floors.items():
        if name not in races:
            problems.append(f"{name}: has not been run")
            continue
        subjects = races[name]["subjects"]
        for peer, floor in peers.items():
            if subjects[peer]["ratio"] < floor:
                problems.append(f"{name}: {peer} takes {subjects[peer]['ratio']:.2f} of our time; the floor is {floor}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--floors", type=Path, default=FLOORS, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="derive the floors of these races from RESULTS.json")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text())
    races, vectors = results["races"], results["machine"]["vectors"]
    per_vectors = json.loads(options.floors.read_text()) if options.floors.exists() else {}
    if options.write:
        per_vectors[vectors] = floors(races, [name for name, race in races.items() if race["what"] == "operator"])
        options.floors.write_text(json.dumps(per_vectors, indent=1) + "\n")
        return 0
    if vectors not in per_vectors:
        print(f"{options.floors}: no floors for {vectors}; `make floors` on an idle machine of this kind adds them")
        return 1
    expected = per_vectors[vectors]
    messages = below_floor(races, expected)
    for message in messages:
        print(message)
    compared = sum(map(len, expected.values()))
    print(f"{len(messages)} of {compared} ratios are under their floors" if messages else f"{compared} ratios hold")
    return bool(messages)


if __name__ == "__main__":
    sys.exit(main())
