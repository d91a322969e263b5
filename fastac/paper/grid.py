"""Which runs a table or figure is made of: its rows, its columns, and the recipe of each cell."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastac.paper.aum import aum_runs
from fastac.paper.published import CIFAR10N, NOISE, TABLES, Published
from fastac.paper.runs import Run, Settings, plain_runs
from fastac.paper.trimming import TAUS, trimmed_chain

__all__ = ["GRIDS", "Cell", "Grid", "figure3"]

Chain = Callable[[str, int, Settings], list[Run]]


@dataclass(frozen=True)
class Cell:
    """A figure: the test accuracy of the last run of `chain(recipe, seed, settings)`, over the seeds."""

    recipe: str
    chain: Chain = plain_runs
    published: Published | None = None

    def runs(self, seed: int, settings: Settings) -> list[Run]:
        return self.chain(self.recipe, seed, settings)


@dataclass(frozen=True)
class Grid:
    """rows, columns: what is printed, by name. cells: by names of row and column; some may be missing."""

    name: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    cells: Mapping[tuple[str, str], Cell]
    notes: tuple[str, ...] = ()

    def select(self, rows: Sequence[str] | None, columns: Sequence[str] | None) -> Grid:
        """The grid of some rows and columns only. ValueError for a name that it doesn't have."""
        chosen_rows = _chosen("rows", rows, self.rows, self.name)
        chosen_columns = _chosen("columns", columns, self.columns, self.name)
        cells = {
            key: cell
            for key, cell in self.cells.items()
            if key[0] in chosen_rows and key[1] in chosen_columns
        }
        if not cells:
            raise ValueError(f"rows and columns were {rows} and {columns}; {self.name} has no such cell")
        return replace(self, rows=chosen_rows, columns=chosen_columns, cells=cells)


def _chosen(
    argument: str, names: Sequence[str] | None, known: Mapping[str, str], table: str
) -> dict[str, str]:
    if names is None:
        return dict(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{argument} was {name!r}; {table} has {', '.join(known)}{hint}")
    return {name: text for name, text in known.items() if name in names}


_NETWORKS = {
    "wrn40-2": "Wide-ResNet-40-2",
    "wrn28-10": "Wide-ResNet-28-10",
    "shake-shake-26-2x32d": "Shake-Shake (26 2x32d)",
    "shake-shake-26-2x96d": "Shake-Shake (26 2x96d)",
    "shake-shake-26-2x112d": "Shake-Shake (26 2x112d)",
    "pyramidnet": "PyramidNet+ShakeDrop",
    "resnet50": "ResNet-50",
}
_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_COLUMNS = {
    "baseline": "Baseline",
    "cutout": "Cutout",
    "aa": "AA",
    "faa": "FAA",
    "pba": "PBA",
    "ac1-aa": "AC1+AA",
    "ac2-aa": "AC2+AA",
}
_SEEDS = "published: averages of five runs"


def _table(
    name: str,
    title: str,
    columns: Sequence[str],
    *,
    behind: Mapping[str, str] | None = None,
    data: bool = False,
    notes: tuple[str, ...] = (_SEEDS,),
) -> Grid:
    """A grid whose columns are variants. behind: by column, a variant to put behind it. data: rows name it too."""
    published = TABLES[name]
    rows, cells = {}, {}
    for base, figures in published.items():
        dataset, _, network = base.partition("-")
        rows[base] = f"{_DATA[dataset]} {_NETWORKS[network]}" if data else _NETWORKS[network]
        for column, figure in zip(columns, figures, strict=True):
            if figure is not None:
                recipe = "+".join(part for part in (base, column, (behind or {}).get(column)) if part)
                cells[base, column] = Cell(recipe, plain_runs, figure)
    return Grid(name, title, rows, {column: _COLUMNS[column] for column in columns}, cells, notes)


_METHODS = {"baseline": "Baseline", "aum": "AUM", "ac1": "AC1", "ac2": "AC2"}
_TABLE_6 = ("baseline", "aum", "ac1")  # the methods that the papers have figures of


def _detection(
    name: str,
    title: str,
    rows: Mapping[str, tuple[str, str]],
    published: Mapping[str, Sequence[Published | None]],
    columns: Sequence[str] = tuple(_METHODS),
    notes: tuple[str, ...] = (),
) -> Grid:
    """Baseline, AUM, AC1 and AC2. rows: by name what is printed, and the recipe."""
    cells = {}
    for row, (_, recipe) in rows.items():
        figures = dict(zip(_TABLE_6, published.get(row, (None,) * 3), strict=True))
        chains: dict[str, tuple[str, Chain]] = {
            "baseline": (f"{recipe}+baseline", plain_runs),
            "aum": (recipe, aum_runs),
            "ac1": (f"{recipe}+ac1", plain_runs),
            "ac2": (f"{recipe}+ac2", plain_runs),
        }
        for column in columns:
            cells[row, column] = Cell(*chains[column], figures.get(column))
    names = {row: text for row, (text, _) in rows.items()}
    return Grid(name, title, names, {column: _METHODS[column] for column in columns}, cells, notes)


def _noise_rows() -> dict[str, tuple[str, str]]:
    kinds = {f"uniform-{rate}": f"{rate} % uniform" for rate in (20, 40, 60, 80)}
    kinds["asymmetric-40"] = "40 % asymmetric"
    rows = {
        f"{data}-{kind}": (f"{_DATA[data]}, {text}", f"{data}-resnet32+noise-{kind}")
        for data in _DATA
        for kind, text in kinds.items()
    }
    plain = ("CIFAR-10, 40 % uniform, no augmentation", "cifar10-resnet32+noise-uniform-40+no-augment")
    return rows | {"cifar10-uniform-40-no-augment": plain}


def figure3(taus: Sequence[float] = TAUS) -> Grid:
    """The figure as a grid: a column for AutoCleansing and one for each τ, per cent of the training set."""
    if not taus:
        raise ValueError("taus was empty; it should be one τ or more, per cent of the training set")
    for tau in taus:
        if not 0 <= tau < 100:
            raise ValueError(
                f"taus was {tau:g}; it should be at least 0 and below 100, per cent of the training set"
            )
    columns = {"ac1-aa": "AC1+AA", **{f"{tau:g}": f"τ = {tau:g} %" for tau in sorted(set(taus))}}
    cells, rows = {}, {}
    for dataset, data in _DATA.items():
        base = f"{dataset}-wrn40-2"
        rows[base] = f"{data} {_NETWORKS['wrn40-2']}"
        aa, ac1 = (TABLES["table8"][base][column] for column in (0, 1))
        cells[base, "ac1-aa"] = Cell(f"{base}+ac1-aa", plain_runs, ac1)
        for tau in sorted(set(taus)):
            cells[base, f"{tau:g}"] = Cell(base, trimmed_chain(tau), aa if tau == 0 else None)
    return Grid(
        "figure3",
        "Figure 3: test accuracy (%) of the base network with AutoAugment on trimmed data",
        rows,
        columns,
        cells,
        (
            "published: highest at τ = 0.2 % on both data sets, and there very close to AutoCleansing's; the curve's "
            "figures are not given",
        ),
    )


def _figures4to6() -> Grid:
    """The runs of Figures 4 to 6: those of the column AC1+AA with WRN-40-2."""
    rows, cells = {}, {}
    for dataset, data in _DATA.items():
        base = f"{dataset}-wrn40-2"
        rows[base] = f"{data} {_NETWORKS['wrn40-2']}"
        cells[base, "ac1-aa"] = Cell(f"{base}+ac1-aa", plain_runs, TABLES["table8"][base][1])
    return Grid(
        "figures4to6",
        "Figures 4 to 6: α̂ of single images and its percentile ranks",
        rows,
        {"ac1-aa": _COLUMNS["ac1-aa"]},
        cells,
        (
            "published: MaxRank or MinRank is below 0.1 % for all images of the figures; of how many runs the numbers "
            "are, the paper does not say",
            "not here: #1 to #5 (Figure 4), #12 and #13, whose ids can't be read in the paper's text; of #1 (dog, cat) "
            "it gives α̂ 0.233 and -0.227",
        ),
    )


_FIVE, _SIX = ("baseline", "cutout", "aa", "faa", "pba"), ("baseline", "cutout", "aa", "faa", "pba", "ac1-aa")

GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        _table("table2", "Table 2: test accuracy (%) on CIFAR-10", _SIX),
        _table("table3", "Table 3: test accuracy (%) on CIFAR-100", _SIX),
        _table(
            "table4",
            "Table 4: test accuracy (%) on SVHN, core and extra training sets",
            _SIX,
            behind=dict.fromkeys(_SIX[1:], "cutout-20"),
            notes=(),
        ),
        _table(
            "table5",
            "Table 5: top-1 / top-5 test accuracy (%) on ImageNet",
            ("baseline", "aa", "faa", "ac2-aa"),
            behind=dict.fromkeys(("aa", "faa", "ac2-aa"), "cutout-0"),
            notes=(),
        ),
        _detection(
            "table6",
            "Table 6: test accuracy (%) of ResNet-32",
            {f"{data}-resnet32": (text, f"{data}-resnet32") for data, text in _DATA.items()},
            TABLES["table6"],
            columns=_TABLE_6,
            notes=(f"{_SEEDS}; AUM's reference code trains on 45,000 images of the 50,000",),
        ),
        _table(
            "table8",
            "Table 8: test accuracy (%) with both forms of α",
            ("aa", "ac1-aa", "ac2-aa"),
            data=True,
        ),
        _detection(
            "noise",
            "Test accuracy (%) of ResNet-32 with wrong labels injected",
            _noise_rows(),
            NOISE,
            notes=("published: AUM's authors' response to their reviewers, to whole per cents",),
        ),
        _detection(
            "digits",
            "Test accuracy (%) of the small CNN on digits, wrong labels injected: the protocols in minutes on a CPU",
            {
                "demo": ("20 % uniform", "demo"),
                "demo-uniform-40": ("40 % uniform", "demo+noise-uniform-40"),
            },
            {},
            notes=("nothing is published",),
        ),
        _detection(
            "fashion-mnist",
            "Test accuracy (%) of the small CNN on Fashion-MNIST, wrong labels injected: the protocols on a CPU",
            {
                "fashion-mnist": ("right labels", "fashion-mnist"),
                "fashion-mnist-uniform-20": ("20 % uniform", "fashion-mnist+noise-uniform-20"),
                "fashion-mnist-uniform-40": ("40 % uniform", "fashion-mnist+noise-uniform-40"),
            },
            {},
            notes=("nothing is published",),
        ),
        _detection(
            "cifar10n",
            "Test accuracy (%) of ResNet-32 on CIFAR-10N's human labels",
            {
                f"cifar10n-{name}": (f"CIFAR-10N {name}", f"cifar10n-{name}")
                for name in ("aggre", "random1", "random2", "random3", "worse")
            },
            CIFAR10N,
            columns=("baseline", "ac1", "ac2"),
            notes=("published: cross entropy with a ResNet-34, another network (Wei et al. 2022)",),
        ),
        figure3(),
        _figures4to6(),
    )
}
"""By the command's name."""
