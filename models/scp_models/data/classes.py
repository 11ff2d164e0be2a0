"""Exclusive classes of a study: which label values each has, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from scp_models.errors import UserError

BACKGROUND = "background"
ALL = "all"
"""Every foreground label that a data set's description has."""
IGNORED_AMONG_CLASSES = 255
"""What is neither trained on nor scored, in labels of several classes as readers return them: no class has that
number.
"""

Classes = dict[str, list[int]]
"""Label values by name, in the order of the classes' numbers, 1, 2, ...; ``background``: what else the files may hold
beside 0, none of it a class.
"""
Labels = Mapping[str, tuple[int, ...]]


def resolve_classes(given: Any, labels: Labels, source: str) -> Classes:
    """Classes as they are said: by value, by name, ``"all"``, or values by name. What this returns it takes again.

    Args:
        given: ``"all"``; a list of label values or names; or a mapping of names to one or several values, in which
            ``background`` has the values that are none of the classes.
        labels: values by name, as the data set's description or the preset has them, for names and ``"all"``. The
            values of those that are no class are background, unless that is given.
        source: what ``labels`` are from, to name in an error.

    Raises:
        UserError: fewer than two classes, a name that ``labels`` lacks, a value of two classes, or of none that a label
            can have.
    """
    where = f"{source}: classes" if given == ALL else "classes"
    known = {name: values for name, values in labels.items() if name != BACKGROUND and set(values) != {0}}
    if given == ALL:
        if not known:
            raise UserError(f"{where}: expected labels by name for {ALL!r}, there are none")
        given = list(known)
    said = isinstance(given, Mapping) and BACKGROUND in given
    background = set() if said else {value for values in labels.values() for value in values}
    classes: dict[str, list[int]] = {}
    if isinstance(given, Mapping):
        for name, values in given.items():
            numbers = [_value(value) for value in (values if isinstance(values, Sequence) else [values])]
            if str(name) == BACKGROUND:
                background = set(numbers)
            else:
                classes[str(name)] = numbers
    elif isinstance(given, Sequence) and not isinstance(given, str):
        by_value = {values: name for name, values in known.items()}
        for item in given:
            if isinstance(item, str) and not item.isdecimal():
                if item not in known:
                    names = ", ".join(known) or "none"
                    raise UserError(f"classes: expected names among those of {source} ({names}), got {item!r}")
                name, values = item, list(known[item])
            else:
                values = [_value(item)]
                name = by_value.get(tuple(values), str(item))
            if name in classes:
                raise UserError(f"classes: expected each class once, got {name!r} twice")
            classes[name] = values
    else:
        raise UserError(f"classes: expected {ALL!r}, a list of label values or names, or values by name, got {given!r}")
    _check(classes, where)
    used = {value for values in classes.values() for value in values}
    return {**classes, BACKGROUND: sorted(background - used - {0})}


def parse_classes(items: Sequence[str]) -> Any:
    """What a command line says, for :func:`resolve_classes`: ``all``, values, names, or ``NAME=VALUE[,VALUE]``.

    Raises:
        UserError: some with values and some without.
    """
    if list(items) == [ALL]:
        return ALL
    with_values = ["=" in item for item in items]
    if not any(with_values):
        return [int(item) if item.isdecimal() else item for item in items]
    if not all(with_values):
        raise UserError(f"--classes: expected NAME=VALUE for each class or for none, got {' '.join(items)}")
    parts = [item.partition("=") for item in items]
    if len({name for name, _, _ in parts}) < len(parts):
        raise UserError(f"--classes: expected each class once, got {' '.join(items)}")
    return {name: values.split(",") for name, _, values in parts}


def describe_classes(classes: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """``left = 1, right = 2``."""
    return ", ".join(f"{name} = {'+'.join(map(str, values))}" for name, values in classes)


def _value(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UserError(f"classes: expected label values of 1 or more, got {value!r}")
    return int(value)


def _check(classes: Mapping[str, Sequence[int]], where: str) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{where}: expected at least two, got {', '.join(classes) or 'none'} (one alone is the target: "
            "--data.target, for evaluate --target)"
        )
    if len(classes) >= IGNORED_AMONG_CLASSES:
        raise UserError(f"{where}: expected fewer than {IGNORED_AMONG_CLASSES}, got {len(classes)}")
    owner: dict[int, str] = {}
    for name, values in classes.items():
        if not values or min(values) < 1:
            raise UserError(f"{where}: expected label values of 1 or more for {name!r}, got {list(values)}")
        for value in values:
            if (other := owner.setdefault(value, name)) != name:
                raise UserError(
                    f"{where}: expected each label value in one class, got {value} in {other!r} and {name!r} "
                    "(overlapping regions are no exclusive classes)"
                )
