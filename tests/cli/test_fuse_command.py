"""`vltool fuse`: the plan as a table, what it says, exit codes."""

from __future__ import annotations

import json

import pytest

CONFIG = """target: {train_jsonl: own.jsonl}
sources:
  - {train_jsonl: coco.jsonl, ratio: 0.5, user_prompt: What is there?}
  - {name: rare, train_jsonl: coco.jsonl, ratio: 0.01}
"""


@pytest.fixture
def here(tmp_path):
    line = '{"images": ["a.jpg"], "width": 9, "height": 9, "objects": [{"desc": "a", "bbox_2d": [0, 0, 5, 5]}]}\n'
    (tmp_path / "own.jsonl").write_text(line * 10)
    (tmp_path / "coco.jsonl").write_text(line * 3)
    (tmp_path / "mix.yaml").write_text(CONFIG)
    return tmp_path


def test_a_dry_run_shows_the_plan_and_writes_nothing(vltool, here):
    before = sorted(here.iterdir())
    code, out, err = vltool("fuse", "mix.yaml", "--dry-run")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["own"] == ["own", "target", "10", "10", "all", "yes", "the", "recipe's"]
    assert rows["coco"] == ["coco", "0.5", "3", "5", "(1.67", "×)", "≤", "64", "no", "What", "is", "there?"]
    assert rows["rare"][3] == "0"
    assert "15 records an epoch, seed 42" in out
    assert "mix.yaml:4:50: rare: ratio 0.01 of 10 records rounds to none" in err
    assert sorted(here.iterdir()) == before


def test_json_holds_the_plan_and_what_was_written(vltool, here):
    code, out, _ = vltool("fuse", "mix.yaml", "-o", "mixed.jsonl", "--seed", "1", "--json")
    document = json.loads(out)
    assert code == 0
    assert [(one["name"], one["drawn"]) for one in document["datasets"]] == [("own", 10), ("coco", 5), ("rare", 0)]
    assert document["notes"][0]["line"] == 4
    assert document["written"]["outputs"] == ["mixed.jsonl"]
    assert document["written"]["up_to_date"] is False
    assert len((here / "mixed.jsonl").read_text().splitlines()) == 15


def test_twice_is_up_to_date(vltool, here):
    assert "15 records" in vltool("fuse", "mix.yaml", "-o", "mixed.jsonl")[1]
    assert vltool("fuse", "mix.yaml", "-o", "mixed.jsonl")[:2] == (0, "up to date  mixed.jsonl.manifest.json\n")


def test_exit_codes(vltool, here):
    assert vltool("fuse", "mix.yaml")[0] == 2
    assert vltool("fuse", "gone.yaml", "-o", "x.jsonl")[0] == 2
    (here / "own.jsonl").write_text("{}\n")
    code, _, err = vltool("fuse", "mix.yaml", "-o", "x.jsonl")
    assert code == 1
    assert "own.jsonl:1: the record has no objects" in err
    assert not (here / "x.jsonl").exists()


def test_ctrl_c_leaves_nothing(vltool, here, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vltool.data.fuse.write_out", stop)
    before = sorted(here.iterdir())
    assert vltool("fuse", "mix.yaml", "-o", "x.jsonl")[0] == 130
    assert sorted(here.iterdir()) == before


def test_a_full_disk_is_the_hosts_fault(vltool, here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vltool.data.fusing.shuffle.os.pwrite", full)
    code, _, err = vltool("fuse", "mix.yaml", "-o", "x.jsonl")
    assert (code, err.splitlines()[-1]) == (3, "cannot write: No space left on device")
    assert not [path for path in here.iterdir() if "x.jsonl" in path.name]


def test_images_stay_under_a_root(vltool, here, monkeypatch):
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(here))
    (here / "out").mkdir()
    vltool("fuse", "mix.yaml", "-o", "out/mixed.jsonl")
    assert all(
        json.loads(line)["images"] == ["a.jpg"] for line in (here / "out" / "mixed.jsonl").read_text().splitlines()
    )
