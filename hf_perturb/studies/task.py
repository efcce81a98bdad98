"""What is to be predicted: a number or a class, of a protein or of each of its residues."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("regression", "binary", "classes")
LEVELS = ("protein", "residue")
# what may be asked for: of what it is, is inferred if it is not said
TASKS = (*KINDS, *(f"{level}-{kind}" for level in LEVELS for kind in KINDS))


@dataclass(frozen=True)
class Task:
    """A kind of prediction.

    Args:
        kind: `regression`, `binary` or `classes`.
        level: `protein` or `residue`.
        classes: names, in the order of their numbers; of a binary task the second is the positive one. None of a
            regression.
    """

    kind: str
    level: str
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = f" ({', '.join(self.classes)})" if self.classes else ""
        return f"{self.kind} of a {self.level}{names}"
