"""A run's folder: its name, its files, the stamp of what made it, and the results that a run ends with."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastac.config import Config, write_config
from fastac.data import EncodedImages, Samples
from fastac.issues.exports import write_csv
from fastac.issues.run_scores import write_scores
from fastac.report.contact_sheet import contact_sheet
from fastac.report.offsets import TopOffsets
from fastac.report.plots import plot_alpha, plot_curves
from fastac.results import Offsets, RankedLabels
from fastac.version import __version__

__all__ = ["RunFolder", "environment", "git_state", "results_text", "write_json", "write_results"]

_BY = {"combined": "AUM and probabilities", "alpha": "α (Algorithm 2)", "aum": "AUM"}


class RunFolder:
    """`OUTPUT/NAME`, with a name for every file in it."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.labels = path / "labels.csv"
        self.issues = path / "issues.csv"
        self.dynamics = path / "dynamics.csv"
        self.scores = path / "scores.npz"
        self.curves = path / "curves.png"
        self.alpha_plot = path / "alpha.png"
        self.contact_sheet = path / "contact_sheet.png"
        self.alpha = path / "alpha.npz"
        self.history = path / "history"
        self.review = path / "review.html"
        self.weights = path / "model.pt"
        self.average = path / "model_ema.pt"
        self.profile = path / "profile"
        self.result = path / "result.json"

    def contents(self) -> list[tuple[Path, str]]:
        """The files for a person, with what they are."""
        return [
            (self.issues, "all samples, the most suspicious label first"),
            (self.contact_sheet, "the most suspicious images"),
            (self.alpha_plot, "how α is spread over the labels"),
            (self.curves, "accuracy and loss by epoch"),
            (self.metrics, "the same as numbers"),
            (self.dynamics, "training dynamics of each sample"),
            (self.scores, "what python -m fastac.issues ranks the labels again by"),
            (self.labels, "the labels that were trained on"),
            (self.weights, "the network's weights, for torch.load and --initial-checkpoint"),
            (self.average, "their moving average, likewise"),
            (self.profile, "a trace of some steps, and where their time went"),
            (self.result, "these figures and more"),
        ]

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """A new folder with its config.toml: the config's name, or recipe-loss-seed with a number if that is
        taken. Raises ValueError for a name of the config's that is taken."""
        output, name = Path(config.run.output), config.run.name
        stem = f"{config.run.recipe or config.data.dataset}-{config.loss.loss}-seed{config.run.seed}"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        if name is not None:
            _check_name(name)
            names = itertools.chain([name])
        draft = output / f".new-{uuid.uuid4().hex}"
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise OSError(
                f"output was {str(output)!r}; it should be a folder that can be written to: {error}"
            ) from error
        try:
            write_config(config, draft / "config.toml")
            for candidate in names:
                try:
                    draft.rename(output / candidate)  # a run folder has its config from its first moment
                    return cls(output / candidate)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
            raise ValueError(
                f"name was {name!r} and {output / str(name)} exists; it should be a new name, or go on with "
                f"that run: --resume {output / str(name)}"
            )
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def write_labels(self, given: np.ndarray, truth: np.ndarray | None) -> None:
        """labels.csv: index, given_label and, where it is known, true_label."""
        columns = [np.arange(len(given)), given] + ([] if truth is None else [truth])
        names = ["index", "given_label", "true_label"][: len(columns)]
        with open(self.labels, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def read_labels(self) -> np.ndarray:
        """The labels that were trained on, (N,) int64, from labels.csv. Raises FileNotFoundError or ValueError."""
        if not self.labels.is_file():
            raise FileNotFoundError(f"{self.path} is not the folder of a run: it has no {self.labels.name}")
        with open(self.labels, encoding="utf-8") as file:
            header = file.readline().strip().split(",")
            if header[:2] != ["index", "given_label"]:
                raise ValueError(
                    f"{self.labels} starts with {','.join(header)!r}; it should be index,given_label"
                )
            try:
                rows = np.loadtxt(file, delimiter=",", usecols=(0, 1), dtype=np.int64, ndmin=2)
            except ValueError as error:
                raise ValueError(f"{self.labels} should hold whole numbers: {error}") from error
        if len(rows) == 0 or not np.array_equal(rows[:, 0], np.arange(len(rows))):
            raise ValueError(f"{self.labels} should have the ids from 0 on, each once and in order")
        return np.ascontiguousarray(rows[:, 1])

    def write_environment(self, stamp: dict[str, Any]) -> None:
        """environment.json; a resumed run adds its stamp to the first one's list `resumed`."""
        if self.environment.is_file():
            first = json.loads(self.environment.read_text(encoding="utf-8"))
            stamp = {**first, "resumed": [*first.get("resumed", []), stamp]}
        write_json(self.environment, stamp)


def write_results(
    folder: RunFolder,
    summary: dict[str, Any],
    *,
    samples: Samples,
    truth: np.ndarray | None,
    labels: RankedLabels,
    offsets: Offsets,
) -> dict[str, Any]:
    """Write issues.csv, scores.npz, alpha.npz, the plots, the contact sheet (not where the loader was synthetic: that
    run has read no image), dynamics.csv and result.json. truth: (N,) int64 labels. Returns what result.json holds:
    `summary` with the number of issues, the detection scores and what could not be read."""
    given, issues = labels.given, labels.issues
    wrong = None if truth is None else given != truth
    title = f"{summary['dataset']}, {summary['model']}, {summary['loss']}, seed {summary['seed']}"
    result = {
        **summary,
        "unreadable_images": [_image_name(samples, i) for i in labels.unread.tolist()],
        "issues_by": labels.method,
        "issues": None if issues is None else int(issues["is_label_issue"].sum()),
        "detection": labels.detection(truth),
    }
    plot_curves(folder.metrics, folder.curves, title=f"{title}: accuracy and loss")
    if labels.alpha is not None:
        text = f"{title}: α of the given labels"
        plot_alpha(labels.alpha, given, folder.alpha_plot, flipped=wrong, title=text)
    if labels.frame is not None:
        labels.frame.to_csv(folder.dynamics, index=False)
    if issues is not None:
        if isinstance(samples.images, EncodedImages):
            issues["path"] = [samples.images.name(i) for i in issues["index"]]
        write_csv(issues, folder.issues)
        write_offsets(folder.alpha, offsets.top)
        write_scores(
            folder.scores,
            given=given,
            class_names=samples.class_names,
            predictions=labels.predictions,
            others=labels.others,
            alpha=labels.alpha,
        )
        text = f"{title}: the most suspicious labels, by {_BY[str(labels.method)]}"
        shown = labels.on_sheet
        if shown is not None and len(shown) and summary["loader"] != "synthetic":
            contact_sheet(
                samples, shown, folder.contact_sheet, alpha=offsets.sheet, true_labels=truth, title=text
            )
    write_json(folder.result, result)
    return result


def write_offsets(path: Path, top: TopOffsets | None) -> None:
    """alpha.npz: index (n,), classes (n, M) and values (n, M), the largest α̂ of some samples; not for AC2. A table of
    all rows may be too large to keep beside the checkpoints."""
    if top is not None:
        np.savez_compressed(path, **vars(top))


def _image_name(samples: Samples, index: int) -> int | str:
    return samples.images.name(index) if isinstance(samples.images, EncodedImages) else index


def results_text(result: dict[str, Any], folder: RunFolder) -> str:
    """The results as a person reads them: accuracies, detection scores, the files."""
    lines = []
    if result["test_accuracy"] is not None:
        short = f" (× {result['short']:g} of the epochs)" if result["short"] < 1 else ""
        lines.append(f"test accuracy of the cleansed network: {result['test_accuracy']:.2%}{short}")
    for name, text in (("test_top5", "top-5"), ("ema_test_accuracy", "with averaged weights")):
        if result[name] is not None:
            lines.append(f"  {text}: {result[name]:.2%}")
    if result["issues"] is not None:
        lines.append(
            f"label issues: {result['issues']} of {result['train_images']} labels, by {result['issues_by']}"
        )
    if result["unreadable_images"]:
        lines.append(
            f"unreadable images, left out: {len(result['unreadable_images'])} (listed in {folder.result.name})"
        )
    if result["issues"] is not None and not result["predict_train"]:
        source = "suggested labels are α's" if result["loss"] == "ac1" else "no labels are suggested"
        lines.append(f"the network was not asked for the training images (--no-predict-train): {source}")
    if result["loader"] == "synthetic":
        lines.append(
            "no contact sheet: the loader was synthetic, so the network has seen noise and no image was read"
        )
    if result["detection"]:
        rate = next(iter(result["detection"].values()))["noise_rate"]
        lines.append(f"finding the {rate:.1%} of the labels that are known to be wrong:")
        lines.append("  by      AUROC   average precision   precision   recall   right suggestions")
        for method, score in result["detection"].items():
            right = score["suggestion_accuracy"]
            lines.append(
                f"  {method:<6}  {score['auroc']:.4f}  {score['average_precision']:.4f}"
                f"              {score['precision']:.4f}      {score['recall']:.4f}   "
                f"{'none' if math.isnan(right) else f'{right:.4f}'}"
            )
    lines.append(f"in {folder.path}:")
    for path, what in folder.contents():
        if path.exists():
            lines.append(f"  {path.name:<18} {what}")
    return "\n".join(lines)


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or name != Path(name).name:
        raise ValueError(
            f"name was {name!r}; it should be one folder's name, without a path (that is output)"
        )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document whole: a reader finds the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(_without_nan(document), indent=2, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What made a run: command line, versions, device, git revision, time. The machine's name is left out."""
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fastac": __version__,
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {
            "torch": str(torch.__version__),  # with its build, which the distribution's version may lack
            **{name: _version(name) for name in ("numpy", "triton", "pandas", "scikit-learn")},
        },
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "ranks": world_size,
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Revision and whether files differ from it, where `package` is a folder of its own checkout; else None
    (an installed package, perhaps inside someone else's checkout)."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "run.py")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
