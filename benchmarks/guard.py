"""Fails when the operator has become slower beside its peers.

``pytest benchmarks --benchmark-only --short --record DIR`` and then ``python -m benchmarks.guard DIR/<machine>.json``
compare ratios taken within one run with the floors of ``benchmarks/floors.json`` for the processor: its name and its
instruction set (``torch.backends.cpu.get_cpu_capability()``), since neither wider vectors nor another memory help all
entrants alike. A processor without floors meets half of the lowest of those with its instruction set. After a change
that makes things faster, ``python -m benchmarks.guard --write RESULTS.json`` derives these floors anew from a record of
an idle machine.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import family

FLOORS = Path(__file__).parent / "floors.json"
# Machines differ and are shared: what is left of a ratio may fall to this part of what was recorded.
HEADROOM = 3
# Another processor's ratios may be this much lower for no fault of ours: a Xeon's with AVX-512 were 0.28 to 0.45 of
# those that the EPYC's floors are a third of, with an operator as fast on the EPYC as when they were recorded.
OTHER_PROCESSOR = 2


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


def floors_of_others(families: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """For a processor that has none: of others' floors the lowest, peer by peer, over what processors may differ."""
    return {
        name: {who: min(floors[name][who] for floors in families) / OTHER_PROCESSOR for who in peers}
        for name, peers in families[0].items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--floors", type=Path, default=FLOORS, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="derive the floors of these races from RESULTS.json")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text())
    races, vectors = results["races"], results["machine"]["vectors"]
    processor = family(results["machine"])
    recorded = json.loads(options.floors.read_text()) if options.floors.exists() else {}
    if options.write:
        recorded[processor] = floors(races, [name for name, race in races.items() if race["what"] == "operator"])
        options.floors.write_text(json.dumps(recorded, indent=1) + "\n")
        return 0
    alike = [name for name in recorded if name.endswith(f"-{vectors.lower()}")]
    if not alike:
        print(f"{options.floors}: no floors for {vectors}; `make floors` on an idle machine of this kind adds them")
        return 1
    if processor not in recorded:
        print(f"no floors for {processor} yet: half of the lowest of {', '.join(alike)}; `make floors` adds them")
    expected = recorded[processor] if processor in recorded else floors_of_others([recorded[n] for n in alike])
    messages = below_floor(races, expected)
    for message in messages:
        print(message)
    compared = sum(map(len, expected.values()))
    print(f"{len(messages)} of {compared} ratios are under their floors" if messages else f"{compared} ratios hold")
    return bool(messages)


if __name__ == "__main__":
    sys.exit(main())
