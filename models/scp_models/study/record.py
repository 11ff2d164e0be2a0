"""``study.json``: the settings, the scores of every subject, the machine and the versions behind a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.study.design import NetworkPair, Study
from scp_models.study.prepared import Prepared

FORMAT = 1
_OF_RUNS = ("threshold", "losses", "parameters", "macs", "seconds", "scores")


def write_record(
    study: Study, prepared: Mapping[str, Prepared], results: Sequence[Mapping[str, Any]], path: Path
) -> Path:
    """Write what all runs gave. Machines and versions are said once, those of all runs.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "study": {**study.as_json(), "runs": len(results)},
        "presets": {r["settings"]["network"]["preset"]: r["settings"]["network"]["preset_values"] for r in results},
        "data": {
            name: {
                "subjects": p.subjects,
                "sites": dict(p.sites),
                "parts": [{part: len(names) for part, names in split.items()} for split in p.splits],
            }
            for name, p in prepared.items()
        },
        "machines": _distinct([r["machine"] for r in results]),
        "versions": _distinct([r["versions"] for r in results]),
        "runs": [
            {
                "data": r["settings"]["data"]["name"],
                "network": r["settings"]["network"]["name"],
                "seed": r["settings"]["seed"],
                "fold": r["settings"]["fold"],
                "subjects": r["subjects"],
                **{key: r[key] for key in _OF_RUNS},
            }
            for r in results
        ],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(_compact(content) + "\n")
    return path


def _compact(content: Mapping[str, Any]) -> str:
    """JSON with a line per run: small, and a change shows where it is."""
    head = {key: value for key, value in content.items() if key != "runs"}
    runs = ",\n".join(json.dumps(run, allow_nan=False) for run in content["runs"])
    return json.dumps(head, indent=1, allow_nan=False)[:-2] + f',\n "runs": [\n{runs}\n ]\n}}'


def _distinct(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(items) for items in dict.fromkeys(tuple(value.items()) for value in values)]


@dataclass(frozen=True)
class Record:
    """A ``study.json`` that was read."""

    path: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["study"]["name"])

    @property
    def title(self) -> str:
        return str(self.content["study"]["title"])

    @property
    def seeds(self) -> list[int]:
        return list(self.content["study"]["seeds"])

    @property
    def data(self) -> list[Mapping[str, Any]]:
        return list(self.content["study"]["data"])

    def networks(self, data: str) -> list[str]:
        """Of a data set."""
        everyone = self.content["study"]["networks"]
        return [network["name"] for network in everyone if network["only_on"] in (None, data)]

    @property
    def comparisons(self) -> list[NetworkPair]:
        return [NetworkPair(**c) for c in self.content["study"]["comparisons"]]

    def runs(self, data: str, network: str) -> list[Mapping[str, Any]]:
        return [run for run in self.content["runs"] if (run["data"], run["network"]) == (data, network)]

    def scores(self, data: str, network: str, metric: str) -> NDArray[np.float64]:
        """``[seeds, subjects]``, subjects by name; those of all folds together.

        Raises:
            UserError: runs are missing.
        """
        rows = []
        for seed in self.seeds:
            of_seed = [run for run in self.runs(data, network) if run["seed"] == seed]
            pairs = [pair for run in of_seed for pair in zip(run["subjects"], run["scores"][metric], strict=True)]
            rows.append(dict(pairs))
        names = sorted(rows[0]) if rows else []
        if not names or any(sorted(row) != names for row in rows):
            raise UserError(f"{self.path}: expected a run of {network!r} on {data!r} with every seed")
        return np.array([[row[name] for name in names] for row in rows])


def read_record(path: Path) -> Record:
    """A finished study's record.

    Raises:
        UserError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not content["runs"]:
            raise ValueError(f"format {content['format']}, {len(content['runs'])} runs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a study.json of a finished study ({error})") from error
    return Record(path, content)
