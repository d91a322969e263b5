"""A run's data, loaded again from another current folder."""

import numpy as np
import pytest

from fastac.apply import retrain_command
from fastac.config import Config, write_config
from fastac.run import RunFolder
from fastac.run_data import image_folder, run_config, run_samples


def make_run(start, **values):
    folder = RunFolder(start / "runs" / "mine")
    folder.path.mkdir(parents=True)
    write_config(Config().with_values(**values), folder.config)
    folder.write_environment({"directory": str(start)})
    return folder


def test_relative_paths_are_of_where_the_run_was_started(tmp_path, monkeypatch):
    for name in ("labels.npz", "left-out.csv"):
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    values = {"data_dir": "data", "labels": "labels.npz:noisy", "exclude": "left-out.csv"}
    folder = make_run(tmp_path, dataset="cifar10", **values)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = run_config(folder).data
    assert data.data_dir == str(tmp_path / "data")
    assert data.labels == str(tmp_path / "labels.npz") + ":noisy"
    assert data.exclude == str(tmp_path / "left-out.csv")
    assert f"--data-dir {tmp_path}/data" in retrain_command(folder, run_config(folder), tmp_path / "new")


def test_paths_that_are_absolute_or_not_there_stay(tmp_path):
    # The label file is in data_dir, where the trainer looks for it too.
    values = {"data_dir": str(tmp_path / "data"), "labels": "labels.npz:noisy", "exclude": "gone.csv"}
    folder = make_run(tmp_path, dataset="cifar10", **values)
    data = run_config(folder).data
    assert (data.data_dir, data.labels, data.exclude) == tuple(values.values())
    assert "--data-dir" not in retrain_command(folder, run_config(folder), tmp_path / "new")
    folder.environment.unlink()  # of a run that has none
    assert run_config(folder).data == data


def test_samples_are_those_of_the_run(tmp_path):
    images = np.arange(10 * 8 * 8, dtype=np.uint8).reshape(10, 8, 8)
    given = np.arange(10) % 2
    np.savez(tmp_path / "data.npz", images=images, labels=given)
    folder = make_run(tmp_path, dataset="npz", data_dir=str(tmp_path / "data.npz"))
    samples = run_samples(folder, run_config(folder), given)
    assert np.array_equal(samples.image(3).squeeze(), images[3])
    assert image_folder(samples) is None
    with pytest.raises(
        ValueError, match="the data has changed since the run: 1 labels are not those of .*of id 4"
    ):
        run_samples(folder, run_config(folder), np.where(np.arange(10) == 4, 1, given))
    with pytest.raises(ValueError, match="there are 10 samples now, and 9 in "):
        run_samples(folder, run_config(folder), given[:9])
    np.savez(tmp_path / "moved.npz", images=images, labels=given)
    (tmp_path / "data.npz").unlink()
    assert len(run_samples(folder, run_config(folder), given, str(tmp_path / "moved.npz"))) == 10
