"""The rows of the tables, and what is expected of them: read from the metafiles alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import yaml

from contnet_mm.apis.config import resources, suggest

# Metrics by their names in metafiles: the key that the evaluators log, what turns its value into
# that of the metafile, and the digits after the point that it is given with.
METRICS = {
    'box AP': ('coco/bbox_mAP', 100, 1),
    'box AP50': ('coco/bbox_mAP_50', 100, 1),
    'box AP s': ('coco/bbox_mAP_s', 100, 1),
    'box AP m': ('coco/bbox_mAP_m', 100, 1),
    'box AP l': ('coco/bbox_mAP_l', 100, 1),
    # The classes of BCCD.
    'box AP Platelets': ('coco/Platelets_precision', 100, 1),
    'box AP RBC': ('coco/RBC_precision', 100, 1),
    'box AP WBC': ('coco/WBC_precision', 100, 1),
    'mask AP': ('coco/segm_mAP', 100, 1),
    'mask AP s': ('coco/segm_mAP_s', 100, 1),
    'mask AP m': ('coco/segm_mAP_m', 100, 1),
    'mask AP l': ('coco/segm_mAP_l', 100, 1),
    'cityscapesScripts AP': ('cityscapes/mAP', 100, 1),
    'mIoU': ('mIoU', 1, 2),
    'Top 1 Accuracy': ('accuracy/top1', 1, 2),
}
# The verdict goes by these, with the tolerance of a training in points; the other metrics are
# shown beside them.
TOLERANCES = {
    'box AP': 0.3,
    'mask AP': 0.3,
    'cityscapesScripts AP': 0.3,
    'mIoU': 0.5,
    'Top 1 Accuracy': 0.3,
}
# Of a value that was measured with one seed on another machine, which rounds in another way.
MEASURED_TOLERANCE = 3.0


@dataclass(frozen=True)
class Zoo:
    """What the authors of a library publish for one of its configs.

    Attributes:
        weights: Address of the file.
        metrics: Their published values.
    """

    weights: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        table: Folder of the config.
        name: Of the config, without a suffix.
        config: Its path relative to the folder above ``configs``.
        published: Values of the paper's tables by the names in ``METRICS``; empty for variants.
        measured: Values measured before.
        spread: Their standard deviations over seeds, where there were several.
        zoo: Name of the library's own config of the same model, if it is one.
    """

    table: str
    name: str
    config: str
    published: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    zoo: str | None = None

    def expected(self) -> dict[str, tuple[float, float]]:
        """Return what a training is judged by: value and tolerance by metric.

        Published values count, with the tolerance of the field; else those measured before, with
        three times their standard deviation over seeds where it is known.
        """
        if self.published:
            return {k: (self.published[k], v) for k, v in TOLERANCES.items() if k in self.published}
        return {
            name: (self.measured[name], self._measured_tolerance(name))
            for name in TOLERANCES
            if name in self.measured
        }

    def _measured_tolerance(self, name: str) -> float:
        if name not in self.spread:
            return MEASURED_TOLERANCE
        return max(3 * self.spread[name], TOLERANCES[name])


def list_tables(root: Path | None = None) -> list[str]:
    """Return the tables: folders of configs with a metafile."""
    return sorted(
        path.parent.name for path in ((root or resources()) / 'configs').glob('*/metafile.yml')
    )


def read_rows(
    table: str, models: Iterable[str] = ('*',), root: Path | None = None, published: bool = False
) -> list[Row]:
    """Read the rows of a table: published ones first, then variants.

    Args:
        table: A folder of configs with a metafile.
        models: Patterns; the name of a row has to match one.
        root: The folder above ``configs``.
        published: Leave out rows without a published value.

    Raises:
        ValueError: If there is no such table, or no row that matches.
    """
    root = root or resources()
    path = root / 'configs' / table / 'metafile.yml'
    if not path.is_file():
        tables = list_tables(root)
        hint = suggest(table, tables, f'there are {", ".join(tables)}')
        raise ValueError(f'{table!r} is no table; {hint}')
    rows = [_read_row(table, entry) for entry in read_yaml(path)['Models']]
    rows = [row for row in rows if row.published or not published]
    chosen = [row for row in rows if any(fnmatch(row.name, pattern) for pattern in models)]
    if not chosen:
        raise ValueError(
            f'no {"published " * published}row of {table} matches {" or ".join(models)}; there are '
            + (', '.join(row.name for row in rows) or 'none')
        )
    return sorted(chosen, key=lambda row: not row.published)


def _read_row(table: str, entry: Mapping) -> Row:
    published = {k: float(v) for k, v in entry.get('Published', {}).items() if k in METRICS}
    results = entry['Results']
    measured: dict[str, float] = {}
    for result in results:
        measured |= {k: float(v) for k, v in result.get('Metrics', {}).items() if k in METRICS}
    return Row(
        table=table,
        name=entry['Name'],
        config=entry['Config'],
        published=published,
        measured=measured,
        spread={k: float(v) for k, v in entry.get('Measured', {}).get('Spread', {}).items()},
        zoo=entry.get('Zoo'),
    )


def find_zoo(config: str) -> Zoo:
    """Find a config of a library in the metafiles that it brings.

    Args:
        config: As a base names it, such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Raises:
        ValueError: If the library is missing, or names no weights for it.
    """
    library, _, path = config.partition('::')
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'{library} is not installed, and {config} is one of its configs')
    folder = Path(spec.submodule_search_locations[0]) / '.mim' / 'configs' / Path(path).parent
    for file in sorted([*folder.glob('metafile.y*ml')]):
        content = read_yaml(file)
        models = content['Models'] if isinstance(content, dict) else content
        for entry in models:
            if entry.get('Config') == f'configs/{path}' and entry.get('Weights'):
                return Zoo(entry['Weights'], _read_metrics(entry['Results']))
    raise ValueError(f'{folder} names no weights of {config}')


def _read_metrics(results: Mapping | list) -> dict[str, float]:
    found: dict[str, float] = {}
    for result in results if isinstance(results, list) else [results]:
        found |= {k: float(v) for k, v in result['Metrics'].items() if k in METRICS}
    return found


def read_yaml(path: Path) -> object:
    """Read a metafile."""
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def convert_metrics(logged: Mapping[str, float]) -> dict[str, float]:
    """Return logged metrics by the names and in the units of metafiles; others are left out.

    Size classes without an object are logged as -1 and left out too.
    """
    return {
        name: round(logged[key] * factor, 3)
        for name, (key, factor, _) in METRICS.items()
        if key in logged and logged[key] >= 0
    }
