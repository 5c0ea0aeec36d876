"""Whether the files of a data set are sound: every fault at once, before a run meets it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .folder import Pair, SegmentationFolder, SegmentationSet, check_split
from .info import DataInfo
from .labels import IGNORED, LabelMap, read_image, read_labels

DRAWN = 50  # of generated data: samples that are counted
SHOWN = 50  # faults in an error message


@dataclass(frozen=True)
class Fault:
    """What is wrong with one pair: `kind` in a word or two, `text` with the paths."""

    kind: str
    text: str


@dataclass
class SplitReport:
    """One split: what there is, and what is wrong with it.

    Attributes:
        samples: pairs of files.
        counted: pairs that the figures below are of.
        pixels: of every class, then those without one.
        images: in which each class occurs.
        sizes: "HxW" -> images.
    """

    samples: int
    counted: int = 0
    pixels: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class FaultyData(ValueError):
    """A data set that cannot be trained on; the message names its faults."""


@dataclass
class CheckReport:
    """What `check_data` found."""

    info: DataInfo
    splits: dict[str, SplitReport]

    @property
    def faults(self) -> list[Fault]:
        """Each once, also of a pair that is in several splits."""
        of_splits = (fault for split in self.splits.values() for fault in split.faults)
        return list(dict.fromkeys(of_splits))

    def raise_faults(self) -> None:
        """Raise if there are faults.

        Raises:
            FaultyData: which they are.
        """
        faults = self.faults
        if not faults:
            return
        counts = Counter(fault.kind for fault in faults)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        lines = [f"  {fault.text}" for fault in faults[:SHOWN]]
        if len(faults) > SHOWN:
            lines.append(f"  and {len(faults) - SHOWN} more, which `attnops check` lists")
        raise FaultyData(
            "\n".join([f"{self.info.name} has {len(faults)} faults ({kinds}):", *lines])
        )


def check_data(
    data: SegmentationSet,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    cached: bool = True,
) -> CheckReport:
    """Read every file of a data set; what is wrong is listed in the report, not raised.

    Files that have not changed since a check (by their sizes and times) are not read again: what
    it found is kept below $XDG_CACHE_HOME (~/.cache).

    Args:
        data: from `open_data`.
        splits: to check; None: all.
        limit: only so many pairs of every split.
        cached: use and keep what a check found.

    Raises:
        ValueError: there is no split of such a name.
    """
    found = {}
    for name in splits or data.splits:
        check_split(data, name)
        if not isinstance(data, SegmentationFolder):
            found[name] = _of_generated(data, name)
            continue
        pairs = data.paths[name][:limit]
        file = _cache_file(data, pairs) if cached else None
        report = _read_cache(file)
        if report is None:
            report = _of_pairs(pairs, data.labels, data.info.num_classes, data.channels)
            _write_cache(file, report)
        found[name] = report
    return CheckReport(data.info, found)


def _of_generated(data: SegmentationSet, name: str) -> SplitReport:
    split = data.split(name)
    report = SplitReport(len(split), min(len(split), DRAWN))
    masks = [split[index][1].numpy() for index in range(report.counted)]
    _count(report, masks, data.info.num_classes)
    return report


def _of_pairs(pairs: Sequence[Pair], labels: LabelMap, classes: int, channels: int) -> SplitReport:
    report = SplitReport(len(pairs))
    report.faults += _doubled(pairs)

    def masks() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as pool:
            for faults, mask in pool.map(lambda pair: _examine(pair, labels, channels), pairs):
                report.faults += faults
                if mask is not None:
                    report.counted += 1
                    yield mask

    _count(report, masks(), classes)
    return report


def _doubled(pairs: Sequence[Pair]) -> list[Fault]:
    """Labels that several images have, as 1.png and 1.jpg beside each other would."""
    images: dict[Path, list[Path]] = {}
    for pair in pairs:
        images.setdefault(pair.label, []).append(pair.image)
    return [
        Fault("doubled label", f"{label}: belongs to {', '.join(map(str, of))}; keep one of them")
        for label, of in images.items()
        if len(of) > 1
    ]


def _examine(pair: Pair, labels: LabelMap, channels: int) -> tuple[list[Fault], np.ndarray | None]:
    """What is wrong with a pair, and its labels of training."""
    faults, image, numbers = [], None, None
    if not pair.image.is_file():
        faults.append(Fault("missing image", f"{pair.image}: no such image, for {pair.label}"))
    else:
        try:
            image = read_image(pair.image, channels)
        except (OSError, ValueError) as error:
            faults.append(Fault("unreadable image", _with_path(error, pair.image)))
    if not pair.label.is_file():
        faults.append(Fault("missing label", f"{pair.label}: no such file, for {pair.image}"))
    else:
        try:
            numbers = read_labels(pair.label)
        except (OSError, ValueError) as error:
            faults.append(Fault("unreadable label", _with_path(error, pair.label)))
    if image is not None and numbers is not None and image.shape[1:] != numbers.shape:
        (height, width), wrong = image.shape[1:], numbers.shape
        faults.append(
            Fault(
                "mis-sized pair",
                f"{pair.label}: {wrong[0]}x{wrong[1]}, but {pair.image} is {height}x{width}",
            )
        )
    if numbers is None:
        return faults, None
    unknown = labels.unknown(np.unique(numbers))
    if unknown:
        listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        faults.append(
            Fault(
                "unknown label",
                f"{pair.label}: holds {listed}, which no class has; map them with class_map "
                "(255 for pixels without a class)",
            )
        )
    return faults, labels(numbers)


def _with_path(error: Exception, path: Path) -> str:
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"


def _count(report: SplitReport, masks: Iterable[np.ndarray], classes: int) -> None:
    pixels = np.zeros(IGNORED + 1, dtype=np.int64)
    images = np.zeros(IGNORED + 1, dtype=np.int64)
    sizes: Counter[str] = Counter()
    for mask in masks:
        counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)
        pixels += counts
        images += counts > 0
        sizes[f"{mask.shape[0]}x{mask.shape[1]}"] += 1
    kept = [*range(classes), IGNORED]
    report.pixels, report.images = pixels[kept].tolist(), images[kept].tolist()
    report.sizes = dict(sizes.most_common())


def _cache_file(data: SegmentationFolder, pairs: Sequence[Pair]) -> Path | None:
    """Named by all that a report depends on."""
    digest = hashlib.sha256(
        json.dumps([1, data.info.num_classes, data.channels, data.labels.known]).encode()
    )
    for pair in pairs:
        for path in pair:
            try:
                stat = path.stat()
                state = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                state = (-1, -1)
            digest.update(f"{path.resolve()} {state}\n".encode())
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "attnops" / "check" / f"{digest.hexdigest()}.json"


def _read_cache(file: Path | None) -> SplitReport | None:
    if file is None:
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        faults = [Fault(**fault) for fault in values.pop("faults")]
        return SplitReport(**values, faults=faults)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_cache(file: Path | None, report: SplitReport) -> None:
    if file is None:
        return
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(report)), encoding="utf-8")
        part.replace(file)
    except OSError:  # the next check reads the files again
        with contextlib.suppress(OSError):
            part.unlink()
