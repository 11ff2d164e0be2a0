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
from scp_models.study.design import Axis, NetworkPair, Study
from scp_models.study.prepared import Prepared
from scp_models.study.threshold import THRESHOLD_GRID

FORMAT = 1
_OF_RUNS = ("threshold", "losses", "parameters", "macs", "seconds", "scores")


def write_record(
    study: Study, prepared: Mapping[str, Prepared], results: Sequence[Mapping[str, Any]], path: Path
) -> Path:
    """Write what the runs of finished data sets gave. Machines and versions are said once, those of all runs.

    Args:
        study: all of it.
        prepared: the data sets that are finished.
        results: of all of their runs.
        path: of the file.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "study": {**study.as_json(), "runs": len(results)},
        "presets": {r["settings"]["network"]["preset"]: r["settings"]["network"]["preset_values"] for r in results},
        "data": {
            name: {
                "subjects": len(p.subjects),
                "sites": dict(p.sites),
                "parts": [{part: len(names) for part, names in split.items()} for split in p.splits],
            }
            for name, p in prepared.items()
        },
        "thresholds": THRESHOLD_GRID,
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
        """The data sets that are finished."""
        return [data for data in self.content["study"]["data"] if data["name"] in self.content["data"]]

    @property
    def axes(self) -> list[Axis]:
        """Those of the study, finished or not."""
        return [Axis(**axis) for axis in self.content["study"].get("axes", ())]

    def is_finished(self, axis: Axis) -> bool:
        """Whether all of its data sets are."""
        return all(name in self.content["data"] for name in axis.levels.values())

    @property
    def thresholds(self) -> Mapping[str, Any]:
        """The lowest and the highest that trainings could choose, and how many."""
        return self.content.get("thresholds", {"lowest": 0.05, "highest": 0.95, "number": 19})  # of older records

    def networks(self, data: str) -> list[str]:
        """Of a data set."""
        everyone = self.content["study"]["networks"]
        return [network["name"] for network in everyone if network["only_on"] in (None, data)]

    @property
    def comparisons(self) -> list[NetworkPair]:
        """Those on finished data sets."""
        everything = [NetworkPair(**c) for c in self.content["study"]["comparisons"]]
        return [pair for pair in everything if pair.data in self.content["data"]]

    @property
    def family(self) -> int:
        """How many comparisons the study decided on, finished or not: intervals are widened for all of them."""
        return len(self.content["study"]["comparisons"])

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
    """The record of a study, or of what is finished of it.

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
