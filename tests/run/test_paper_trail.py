"""What a run leaves about itself: evidence, manifest; and what the launch does before a worker starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from planning import House

from vltool.errors import MissingOnHost, RunFailed
from vltool.run import launch
from vltool.run.evidence import Evidence, TowerRow, write_atomically
from vltool.run.manifest import PACKAGES, fingerprint, make_manifest


def test_evidence_comes_back(tmp_path):
    assert Evidence.read(tmp_path) == Evidence()
    row = TowerRow(tower="vision", should_train=True, trainable=5, got_gradient=False, problem="no “gradient”")
    seen = Evidence(towers=[row], gradient_problems=[], kd_at_start=0.0, finished=True, versions={"a": "1"})
    seen.write(tmp_path)
    assert Evidence.read(tmp_path) == seen
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_manifest_says_what_the_run_was_made_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MINE", "as the shell says")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    house = House(tmp_path)
    plan = house.plan(launch={"env": {"MINE": "x", "UNSET_ONE": "y"}}, training={"seed": 7})
    manifest = make_manifest(plan)
    json.dumps(manifest)
    assert manifest["seed"] == 7
    assert manifest["packages"].keys() == set(PACKAGES)
    assert manifest["data"] == {"train": [fingerprint(house.train)], "val": []}
    assert manifest["environment"]["OMP_NUM_THREADS"] == "3"
    assert manifest["environment"]["MINE"] == "as the shell says"
    assert not manifest["environment"].keys() & {"SECRET_TOKEN", "UNSET_ONE", "CUDA_VISIBLE_DEVICES"}
    assert manifest["git_revision"] is None
    (marks,) = make_manifest(house.plan(custom={"val_jsonl": str(house.val)}))["data"]["val"]
    assert marks == fingerprint(house.val)


def test_fingerprints_tell_files_apart(tmp_path):
    def of(content):
        (tmp_path / "f").write_bytes(content)
        return fingerprint(tmp_path / "f")["sha256_of_edges"]

    mib = bytes(1 << 20)
    contents = [
        b"",
        b"a",
        b"b",
        b"aa",
        mib,
        mib + b"x",
        b"x" + mib,
        mib * 3 + b"x",
        mib * 3 + b"y",
        b"x" + mib + mib + mib,
    ]
    assert len({of(content) for content in contents}) == len(contents)
    assert of(b"a") == of(b"a")
    assert fingerprint(tmp_path / "f")["bytes"] == 1


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name in ("swift", "qwen_vl_utils") else object())
    with pytest.raises(MissingOnHost) as caught:
        launch.require_training_stack()
    assert "ms-swift, qwen-vl-utils missing" in str(caught.value)
    assert "pip install 'vltool[train]'" in str(caught.value)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    launch.require_training_stack()


def test_imports_are_quiet_unless_debugged(monkeypatch):
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with launch.quiet_imports(show=True):
            warnings.warn("shown", stacklevel=1)
        assert "LOG_LEVEL" not in os.environ
        with launch.quiet_imports(show=False):
            warnings.warn("hidden", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["shown"]
    assert os.environ["LOG_LEVEL"] == "WARNING"
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    with launch.quiet_imports(show=False):
        assert os.environ["LOG_LEVEL"] == "INFO"


@pytest.mark.parametrize(
    ("err", "said"), [("Traceback\n  x\nValueError: broken\n", "ValueError: broken"), ("", "it said nothing")]
)
def test_a_reload_that_fails_says_why(err, said, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=err, stdout=""))
    with pytest.raises(RunFailed, match=f"checkpoint-3 does not load in a new process: {said}"):
        launch.reload(tmp_path, tmp_path / "checkpoint-3")


def test_a_reload_is_another_process_whose_last_line_counts(tmp_path, monkeypatch):
    seen = []

    def run(command, **options):
        seen.append(command)
        return SimpleNamespace(returncode=0, stderr="a warning", stdout='noise\n{"difference": 0.5}\n')

    monkeypatch.setattr(subprocess, "run", run)
    assert launch.reload(tmp_path, tmp_path / "c") == {"difference": 0.5}
    assert seen == [[sys.executable, "-m", "vltool.training.reload", str(tmp_path), str(tmp_path / "c")]]
