"""The store of states: limits, damaged files, folders of others, several processes at once."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tasks.models.files import cache_folder
from tasks.speed.block_store import BlockStore

SIZE = 4096
KIB = 1 / 1024


def _value(number: int) -> np.ndarray:
    return np.full(SIZE, number, dtype=np.uint8)


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    store = BlockStore(12 * KIB, None, 0)
    for number in range(3):
        store.put(str(number), _value(number))
    assert store.get("0", SIZE) is not None
    store.put("3", _value(3))
    assert store.get("1", SIZE) is None and store.get("0", SIZE) is not None
    assert store.memory_bytes() == 12 * 1024
    assert store.report()["hit_rate"] == pytest.approx(2 / 3)


def test_what_memory_lets_go_of_is_read_from_the_disk(tmp_path: Path) -> None:
    store = BlockStore(4 * KIB, tmp_path / "s", 1.0)
    for number in range(4):
        store.put(str(number), _value(number))
    for number in range(4):
        np.testing.assert_array_equal(store.get(str(number), SIZE), _value(number))
    assert store.misses == 0 and store.disk_hits >= 3 and store.memory_bytes() == 4 * 1024
    mapped = BlockStore(0, tmp_path / "s", 1.0).get("2", SIZE)  # nothing may stay in memory: the file itself
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, _value(2))
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    store = BlockStore(0, tmp_path / "s", 40 * KIB)
    for number in range(100):
        store.put(str(number), _value(number))
        assert store.disk_bytes() <= 40 * 1024 + 16 * 100
    assert store.get("0", SIZE) is None and store.get("99", SIZE) is not None


@pytest.mark.parametrize("damage", ["short", "altered", "empty"])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    BlockStore(0, tmp_path / "s", 1.0).put("k", _value(1))
    (path,) = (tmp_path / "s").iterdir()
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes({"short": raw[:-1], "altered": raw, "empty": b""}[damage])
    store = BlockStore(1.0, tmp_path / "s", 1.0)
    assert store.get("k", SIZE) is None and "computed again" in caplog.text
    store.put("k", _value(1))
    np.testing.assert_array_equal(BlockStore(0, tmp_path / "s", 1.0).get("k", SIZE), _value(1))


def test_another_size_is_not_found(tmp_path: Path) -> None:
    store = BlockStore(1.0, tmp_path / "s", 1.0)
    store.put("k", _value(1))
    assert store.get("k", SIZE + 1) is None and store.get("k", SIZE) is not None


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o777)
    store = BlockStore(1.0, folder, 1.0)
    store.put("k", _value(1))
    assert not list(folder.iterdir()) and "written by others" in caplog.text
    assert store.get("k", SIZE) is not None


def test_without_room_on_the_disk_memory_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = BlockStore(1.0, tmp_path / "s", 1.0)
    (tmp_path / "s").rmdir()
    store.put("k", _value(1))
    assert "nothing" in caplog.text and store.get("k", SIZE) is not None


def _work(folder: str, seed: int) -> int:
    """Read and write the same keys as the other processes; return how many wrong values were seen."""
    store, rng, wrong = BlockStore(0, Path(folder), 60 * KIB), np.random.default_rng(seed), 0
    for number in rng.integers(0, 30, 300):
        found = store.get(str(number), SIZE)
        if found is None:
            store.put(str(number), _value(int(number)))
        else:
            wrong += int((found != number).any())
    return wrong


def test_a_read_only_folder_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")  # what such a disk says of names that are not there, too

    store = BlockStore(1, tmp_path, 1)
    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    assert store.put("a", np.arange(8, dtype=np.uint8)).tolist() == list(range(8))
    assert "cannot be written" in caplog.text


def test_processes_share_a_folder_without_seeing_half_a_file(tmp_path: Path) -> None:
    # Not forked: a process of many threads may leave its children a lock that nobody will release.
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_work, [str(tmp_path / "s")] * 3, range(3))) == [0, 0, 0]
    assert not list((tmp_path / "s").glob(".*"))
    assert BlockStore(0, tmp_path / "s", 1.0).disk_bytes() <= 3 * 60 * 1024


def test_files_of_others_are_neither_deleted_nor_counted(tmp_path: Path) -> None:
    """A person named a folder that holds other things: whatever they are called, they stay, and take no room of the limit."""
    folder = tmp_path / "thesis"
    (folder / "chapter").mkdir(parents=True)
    folder.chmod(0o700)
    store = BlockStore(0, folder, 40 * KIB)
    store.put("mine", _value(1))
    (kept,) = folder.glob("*.states")
    names = [
        "thesis.docx",
        "results.states",
        ".notes.tmp",
        "a" * 48 + ".states",
        f"copy of {kept.name}",
        f"{kept.name}.bak",
        "fedlodrop-notes.states",
        "chapter/1.tex",
    ]
    for name in names:
        (folder / name).write_bytes(bytes(100 * 1024))
        os.utime(folder / name, (1, 1))  # used longest ago
    for number in range(100):
        store.put(str(number), _value(number))
    assert all((folder / name).stat().st_size == 100 * 1024 for name in names)
    assert 5 * 4096 < store.disk_bytes() <= 40 * 1024 + 16 * 100
    assert store.get("99", SIZE) is not None


def test_what_a_killed_process_left_half_written_goes_first(tmp_path: Path) -> None:
    store = BlockStore(0, tmp_path / "s", 40 * KIB)
    store.put("k", _value(1))
    (kept,) = (tmp_path / "s").iterdir()
    half = kept.with_name(f"{kept.name}.abc123.tmp")
    half.write_bytes(bytes(30 * 1024))
    os.utime(half, (1, 1))
    for number in range(20):
        store.put(str(number), _value(number))
    assert not half.exists()


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("XDG_CACHE_HOME", "{home}/caches", "caches/fedlodrop"),
        ("XDG_CACHE_HOME", "caches", ".cache/fedlodrop"),
        ("XDG_CACHE_HOME", "", ".cache/fedlodrop"),
    ],
)
def test_without_a_name_files_go_to_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, found: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, value.format(home=tmp_path))
    assert cache_folder(None) == tmp_path / found and not list(tmp_path.iterdir())
    assert cache_folder("~/named") == tmp_path / "named"
