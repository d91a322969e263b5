"""The papers' tables: the published figures, and which recipes and runs each cell has."""

import ast
import graphlib
from pathlib import Path

import pytest

import fastac.paper
from fastac.config import load_config
from fastac.paper.__main__ import main
from fastac.paper.grid import GRIDS, figure3
from fastac.paper.published import TABLE_7, TABLES, Published
from fastac.paper.runs import Settings
from fastac.paper.trimming import trimmed_chain

# ---------------------------------------------------------------- what is published

# As the paper prints them: its name of the row's data and network, then the figures column by column.
PAPER = {
    "table2": """
        cifar10-wrn40-2 | 94.70 | 95.90 | 96.30 | 96.30 | - | 96.56 ± 0.11
        cifar10-wrn28-10 | 96.13 | 96.92 | 97.32 | 97.30 | 97.42 | 97.53 ± 0.08
        cifar10-shake-shake-26-2x32d | 96.45 | 96.98 | 97.53 | 97.50 | 97.46 | 97.60 ± 0.07
        cifar10-shake-shake-26-2x96d | 97.14 | 97.44 | 98.01 | 98.00 | 97.97 | 98.12 ± 0.11
        cifar10-shake-shake-26-2x112d | 97.18 | 97.43 | 98.11 | 98.10 | 97.97 | 98.27 ± 0.05
        cifar10-pyramidnet | 97.33 | 97.69 | 98.52 | 98.30 | 98.54 | 98.59 ± 0.05""",
    "table3": """
        cifar100-wrn40-2 | 74.00 | 74.80 | 79.30 | 79.40 | - | 79.94 ± 0.20
        cifar100-wrn28-10 | 81.20 | 81.59 | 82.91 | 82.70 | 83.27 | 84.07 ± 0.18
        cifar100-shake-shake-26-2x96d | 82.95 | 84.00 | 85.72 | 85.40 | 84.69 | 86.19 ± 0.12
        cifar100-pyramidnet | 86.01 | 87.81 | 89.33 | 88.30 | 89.06 | 89.40 ± 0.11""",
    "table4": """
        svhn-wrn28-10 | 98.50 | 98.70 | 98.93 | 98.90 | 98.82 | 98.96""",
    "table5": """
        imagenet-resnet50 | 75.30 / 92.20 | 77.63 / 93.82 | 77.60 / 93.70 | 77.71 / 93.58""",
    "table6": """
        cifar10-resnet32 | 91.9 | 92.1 | 92.75 ± 0.06
        cifar100-resnet32 | 67.0 | 68.2 | 69.13 ± 0.24""",
    "table8": """
        cifar10-wrn40-2 | 96.30 | 96.56 ± 0.11 | 96.54 ± 0.11
        cifar10-wrn28-10 | 97.32 | 97.53 ± 0.08 | 97.48 ± 0.06
        cifar100-wrn40-2 | 79.30 | 79.94 ± 0.20 | 79.86 ± 0.19
        cifar100-wrn28-10 | 82.91 | 84.07 ± 0.18 | 84.12 ± 0.17""",
}
COLUMNS = {
    "table2": "Baseline Cutout AA FAA PBA AC1+AA",
    "table3": "Baseline Cutout AA FAA PBA AC1+AA",
    "table4": "Baseline Cutout AA FAA PBA AC1+AA",
    "table5": "Baseline AA FAA AC2+AA",
    "table6": "Baseline AUM AC1",
    "table8": "AA AC1+AA AC2+AA",
}


@pytest.mark.parametrize("name", PAPER)
def test_the_grids_have_the_published_cells(name):
    grid = GRIDS[name]
    assert list(grid.columns.values()) == COLUMNS[name].split()
    lines = []
    for row in grid.rows:
        cells = [grid.cells.get((row, column)) for column in grid.columns]
        lines.append(" | ".join([row, *("-" if cell is None else str(cell.published) for cell in cells)]))
    assert lines == [line.strip() for line in PAPER[name].strip().splitlines()]


def test_all_published_tables_have_a_grid():
    assert TABLES.keys() == PAPER.keys()
    assert TABLES.keys() <= GRIDS.keys()
    assert GRIDS["table2"].cells["cifar10-pyramidnet", "ac1-aa"].published == Published(98.59, 0.05)


# Table 7 as the paper prints it.
TABLE_7_ROWS = """
    cifar10-resnet32 ResNet-32 0.1 multistep 0.0001 256 300
    cifar10-wrn40-2 Wide-ResNet-40-2 0.1 cosine 0.0002 128 200
    cifar10-wrn28-10 Wide-ResNet-28-10 0.1 cosine 0.0005 128 200
    cifar10-shake-shake-26-2x32d Shake-Shake (26 2x32d) 0.01 cosine 0.001 128 1800
    cifar10-shake-shake-26-2x96d Shake-Shake (26 2x96d) 0.01 cosine 0.001 128 1800
    cifar10-shake-shake-26-2x112d Shake-Shake (26 2x112d) 0.01 cosine 0.001 128 1800
    cifar10-pyramidnet PyramidNet+ShakeDrop 0.05 cosine 5e-05 64 1800
    cifar100-resnet32 ResNet-32 0.1 multistep 0.0001 256 300
    cifar100-wrn28-10 Wide-ResNet-28-10 0.1 cosine 0.0005 128 200
    cifar100-shake-shake-26-2x96d Shake-Shake (26 2x96d) 0.01 cosine 0.0025 128 1800
    cifar100-pyramidnet PyramidNet+ShakeDrop 0.025 cosine 0.0005 64 1800
    svhn-wrn28-10 Wide-ResNet-28-10 0.005 cosine 0.001 128 200
    imagenet-resnet50 ResNet-50 0.1 multistep 0.0001 256 270
"""


def test_table_7_is_the_published_one():
    lines = [
        f"{name} {s.model} {s.lr} {s.schedule} {s.weight_decay} {s.batch_size} {s.epochs}"
        for name, s in TABLE_7.items()
    ]
    assert lines == [line.strip() for line in TABLE_7_ROWS.strip().splitlines()]
    steps = {name: s.milestones for name, s in TABLE_7.items() if s.schedule == "multistep"}
    assert steps == {
        "cifar10-resnet32": (150, 225),
        "cifar100-resnet32": (150, 225),
        "imagenet-resnet50": (90, 180, 240),
    }


def test_the_noise_that_is_published():
    """The response gives errors: 43 % and 12 % with AUM; without augmentation 51 % and 20 %."""
    published = {
        key: cell.published for key, cell in GRIDS["noise"].cells.items() if cell.published is not None
    }
    rows = ("cifar10-uniform-40", "cifar10-uniform-40-no-augment")
    assert {key: str(figure) for key, figure in published.items()} == {
        (rows[0], "baseline"): "57",
        (rows[0], "aum"): "88",
        (rows[1], "baseline"): "49",
        (rows[1], "aum"): "80",
    }


def test_both_forms_of_alpha_stand_beside_what_they_are_compared_with():
    for name in ("noise", "digits", "fashion-mnist"):
        assert list(GRIDS[name].columns) == ["baseline", "aum", "ac1", "ac2"]
    assert list(GRIDS["cifar10n"].columns) == ["baseline", "ac1", "ac2"]
    cell = GRIDS["noise"].cells["cifar10-uniform-40", "ac2"]
    assert cell.published is None
    assert (load_config(cell.recipe).loss.loss, load_config(cell.recipe).data.noise_rate) == ("ac2", 0.4)


# ---------------------------------------------------------------- the cells' runs


def test_every_cell_has_recipes_that_load(tmp_path):
    for grid in GRIDS.values():
        for cell in grid.cells.values():
            for run in cell.runs(0, Settings(tmp_path)):
                assert run.config().run.seed == 0


def test_what_a_cell_trains():
    def data_of(table, row, column):
        return load_config(GRIDS[table].cells[row, column].recipe).data

    svhn = data_of("table4", "svhn-wrn28-10", "ac1-aa")
    assert (svhn.dataset, svhn.aa, svhn.cutout) == ("svhn-extra", "autoaugment", 20)
    assert data_of("table4", "svhn-wrn28-10", "baseline").cutout == 0
    cifar = data_of("table3", "cifar100-wrn28-10", "pba")
    assert (cifar.dataset, cifar.aa, cifar.cutout) == ("cifar100", "pba", 16)
    noisy = data_of("noise", "cifar10-uniform-40-no-augment", "ac1")
    assert (noisy.noise, noisy.noise_rate, noisy.augment) == ("uniform", 0.4, "none")
    imagenet = {column: cell.recipe for (_, column), cell in GRIDS["table5"].cells.items()}
    assert imagenet["aa"] == "imagenet-resnet50+aa+cutout-0"
    assert imagenet["faa"] == "imagenet-resnet50+faa+cutout-0"


def test_tables_share_their_runs(tmp_path):
    settings = Settings(tmp_path)
    shared = GRIDS["table2"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings)
    assert GRIDS["table8"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings) == shared
    assert GRIDS["figure3"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings) == shared
    detector, trimmed = GRIDS["figure3"].cells["cifar10-wrn40-2", "0.2"].runs(2, settings)
    assert [detector] == shared
    assert trimmed.needs == (detector.name,)
    assert GRIDS["figure3"].cells["cifar10-wrn40-2", "0"].runs(2, settings) == GRIDS["table2"].cells[
        "cifar10-wrn40-2", "aa"
    ].runs(2, settings)


def test_taus(tmp_path):
    assert list(figure3([0.4, 0, 0.4]).columns) == ["ac1-aa", "0", "0.4"]
    with pytest.raises(ValueError, match="taus was 100; it should be at least 0 and below 100"):
        figure3([0, 100])
    with pytest.raises(ValueError, match="taus was empty; it should be one τ or more"):
        figure3([])
    assert trimmed_chain(0)("cifar10-wrn40-2", 0, Settings(tmp_path))[0].recipe == "cifar10-wrn40-2+aa"


def test_list_and_table_7(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "figure3: Figure 3" in text
    assert "rows: svhn-wrn28-10" in text
    assert main(["table7"]) == 0
    text = capsys.readouterr().out
    assert "published:" not in text
    assert text.count("epochs\n") == 13


def test_the_modules_imports_have_no_circle():
    """Imports for annotations alone count too."""
    imports = {}
    for path in Path(fastac.paper.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imports[f"fastac.paper.{path.stem}"] = {name for name in names if name.startswith("fastac.paper.")}
    assert imports["fastac.paper.grid"] >= {"fastac.paper.runs", "fastac.paper.trimming"}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError
