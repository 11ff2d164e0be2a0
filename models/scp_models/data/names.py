"""Names of one subject that differ by the folders in front: ``104252`` and ``training_TabrizB_104252``.

A subject is called after its place below the folder that was given, so another folder gives another name.
"""

from collections.abc import Iterable

from scp_models.notes import note


def match_names(wanted: Iterable[str], present: Iterable[str], source: str) -> dict[str, str]:
    """The present name of each wanted one: the same, or the only one of which one is the end of the other.

    Ends count from an underscore on. A name that several others could mean, or that means one of those with several
    others, is left out. There is a note if ends had to be compared.

    Args:
        wanted: names to look for.
        present: names that are there.
        source: what the wanted or the present names are from, for the note.
    """
    wanted, present = list(dict.fromkeys(wanted)), list(dict.fromkeys(present))
    matches = {name: name for name in wanted if name in set(present)}
    rest = [name for name in present if name not in matches]
    candidates = {name: [other for other in rest if _alike(name, other)] for name in wanted if name not in matches}
    claims = [other for others in candidates.values() for other in others]
    by_end = {k: others[0] for k, others in candidates.items() if len(others) == 1 and claims.count(others[0]) == 1}
    if by_end:
        name, other = next(iter(by_end.items()))
        note(f"{source}: {len(by_end)} subjects are matched by the ends of their names, such as {other} for {name}")
    return {**matches, **by_end}


def _alike(first: str, second: str) -> bool:
    return first.endswith(f"_{second}") or second.endswith(f"_{first}")
