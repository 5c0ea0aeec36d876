"""What a data set says of its classes: it travels with the weights in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DataInfo:
    """Names and colours of the classes of a data set, in the order of the labels in training.

    Attributes:
        name: of the data set.
        classes: their names; label i is `classes[i]`.
        palette: (red, green, blue), 0 to 255, for each of them.
        ignore_index: label of pixels without a class.

    Raises:
        ValueError: no class, not one colour a class, or an `ignore_index` that is a class.

    Example:
        >>> info = DataInfo("roads", ("ground", "road"), ((0, 0, 0), (128, 64, 128)))
        >>> DataInfo.from_dict(info.to_dict()) == info
        True
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"DataInfo: {self.name!r} has no classes")
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"DataInfo: {self.name!r} has {len(self.classes)} classes but "
                f"{len(self.palette)} colours; give one colour a class"
            )
        if 0 <= self.ignore_index < len(self.classes):
            raise ValueError(
                f"DataInfo: ignore_index={self.ignore_index} of {self.name!r} is one of its "
                f"{len(self.classes)} classes"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, which JSON can hold."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "ignore_index": self.ignore_index,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataInfo:
        """What `to_dict` gave.

        Raises:
            ValueError: an entry is missing or has another form.
        """
        try:
            return cls(
                name=str(values["name"]),
                classes=tuple(str(name) for name in values["classes"]),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in values["palette"]),
                ignore_index=int(values.get("ignore_index", 255)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"DataInfo: not what to_dict() gives: {error}") from error
