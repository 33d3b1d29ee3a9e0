from __future__ import annotations

import json
import math
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amorsize_executor import (
    OptimizationResult,
    Profile,
    StreamingOptimizationResult,
    load_config,
    machine,
    optimize,
    optimize_streaming,
    save_config,
)

RESULT = OptimizationResult(
    4, 12, 3.5, 1.25, "four are faster", ("mind the gap",), Profile("f", 30, 0.01, 0.002), [1, 2, 3], 3
)
STREAM = StreamingOptimizationResult(
    4, 12, 3.5, math.nan, "four are faster", (), Profile("f", 30), (), None, buffersize=96
)


@pytest.mark.parametrize("result", [RESULT, STREAM])
def test_a_config_comes_back_as_it_was(tmp_path: Path, result: OptimizationResult) -> None:
    loaded = load_config(save_config(result, tmp_path / "deep" / "config.json"))
    assert type(loaded) is type(result)
    assert loaded == result or math.isnan(result.estimated_time)
    assert (loaded.n_jobs, loaded.chunksize, loaded.reason) == (4, 12, "four are faster")
    assert (loaded.warnings, loaded.profile, loaded.n_items) == (result.warnings, result.profile, result.n_items)
    assert getattr(loaded, "buffersize", None) == getattr(result, "buffersize", None)
    assert list(loaded.data) == []
    assert str(loaded) == str(result)


def test_what_was_really_optimized(tmp_path: Path) -> None:
    for result in (optimize(abs, range(100)), optimize_streaming(abs, iter(range(100))), optimize(abs, [])):
        loaded = load_config(save_config(result, tmp_path / "x.json"))
        assert (loaded.n_jobs, loaded.chunksize) == (result.n_jobs, result.chunksize)
        assert loaded.profile == result.profile
    with pytest.raises(ValueError, match="nothing to plot"):
        loaded.plot()


def test_a_loaded_result_has_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to plot: a config"):
        load_config(save_config(RESULT, tmp_path / "x.json")).plot()


def test_a_loaded_stream_has_no_input(tmp_path: Path) -> None:
    loaded = load_config(save_config(STREAM, tmp_path / "x.json"))
    assert isinstance(loaded, StreamingOptimizationResult)
    with pytest.raises(ValueError, match="has no input"):
        loaded.stream()


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert save_config(RESULT, "nightly.v1") == tmp_path / "config" / "amorsize_executor" / "nightly.v1.json"
    assert load_config("nightly.v1").n_jobs == 4
    assert save_config(RESULT, "here.json").absolute() == tmp_path / "here.json"
    assert save_config(RESULT, "folder/config") == Path("folder/config")
    assert load_config("folder/config").n_jobs == 4


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_overwriting(tmp_path: Path) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_config(STREAM, path, overwrite=False)
    assert type(load_config(path)) is OptimizationResult
    save_config(STREAM, path)
    assert type(load_config(path)) is StreamingOptimizationResult
    save_config(RESULT, tmp_path / "new.json", overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.json", "x.json"]


def test_overwriting_is_refused_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", link)
    path = save_config(RESULT, tmp_path / "x.json", overwrite=False)
    assert load_config(path).n_jobs == 4
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_config(STREAM, path, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    before = path.read_bytes()

    def fail(fd: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_config(STREAM, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no config 'unknown' \(looked for .*unknown.json\)"):
        load_config("unknown")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="name_or_path must be a file, got the folder"):
        load_config(tmp_path)
    with pytest.raises(IsADirectoryError, match="name_or_path must be a file, got the folder"):
        save_config(RESULT, f"{tmp_path}/")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_config_tells_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"no config 'here.json' \(looked for {tmp_path}/here.json\)"):
        load_config("here.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 5000, b" " * (1 << 21)])
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged|is no config"):
        load_config(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "3"])
def test_a_file_that_is_no_config(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no config of amorsize_executor"):
        load_config(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "newer version of amorsize_executor"),
        ({"version": 0}, "version must be a value of type int of at least 1, got 0"),
        ({"version": "1"}, r"version must be .*'1' \(str\)"),
        ({"kind": "other"}, "kind must be 'batch' or 'streaming', got 'other'"),
        ({"estimated_time": math.inf}, "estimated_time must be"),
        ({"n_jobs": 0}, "n_jobs must be a value of type int of at least 1, got 0"),
        ({"n_jobs": True}, "n_jobs must be"),
        ({"chunksize": "many"}, r"chunksize must be .*'many' \(str\)"),
        ({"reason": 3}, "reason must be"),
        ({"warnings": "none"}, "warnings must be texts"),
        ({"warnings": [1]}, "warnings must be texts"),
        ({"profile": {}}, "'function' is missing"),
        ({"profile": []}, "is damaged"),
        ({"machine": {}}, "'cpu_count' is missing"),
        ({"estimated_time": -1}, "estimated_time must be"),
        ({"estimated_speedup": math.nan}, "estimated_speedup must be"),
        ({"n_jobs": None}, "n_jobs must be"),
    ],
)
def test_a_config_with_something_wrong_in_it(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=told):
        load_config(path)


@pytest.mark.parametrize("name", ["n_jobs", "chunksize", "profile", "machine", "reason", "kind", "version"])
def test_a_config_with_something_missing(tmp_path: Path, name: str) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"damaged: '{name}' is missing"):
        load_config(path)


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"name_or_path must lie in a folder, and part of .*file is a file"):
        save_config(RESULT, tmp_path / "file" / "x.json")
    with pytest.raises(FileNotFoundError, match="there is no config"):
        load_config(tmp_path / "file" / "x.json")


def test_a_config_whose_workers_do_not_fit_into_the_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = replace(RESULT, profile=replace(RESULT.profile, peak_worker_memory=3 * 10**8))
    path = save_config(result, tmp_path / "x.json")
    monkeypatch.setattr(machine, "memory_limit", lambda: 10**9)
    with pytest.warns(UserWarning, match=r"4 workers of this config take 1.2 GB, and this machine has 1 GB"):
        assert "take 1.2 GB" in load_config(path).warnings[-1]
    serial = save_config(replace(result, n_jobs=1), path)
    monkeypatch.setattr(machine, "memory_limit", lambda: 10**8)
    assert load_config(serial).warnings == RESULT.warnings


def test_a_config_of_a_machine_with_other_cpus_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_config(RESULT, tmp_path / "x.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(path)
    n = machine.cpu_count()
    monkeypatch.setattr(machine, "cpu_count", lambda: n + 6)
    with pytest.warns(UserWarning, match=f"saved on a machine with {n} CPU") as told:
        loaded = load_config(path)
    assert Path(told[0].filename) == Path(__file__)
    assert loaded.warnings[0] == "mind the gap"
    assert f"this one has {n + 6}" in loaded.warnings[1]
