"""What processes say reaches the one that launched them, all of it and in order."""

from __future__ import annotations

import threading
import time

import pytest

from vltool.errors import BadContent, InvalidInput, MissingOnHost, OutOfMemory, Problem, RunFailed, Where
from vltool.run.evidence import TowerRow
from vltool.run.wire import Receiver, Sender, rebuilt, receiver


def heard_from(folder, *talks):
    """Events of one process for each talk, all read after the processes have ended."""
    with receiver(folder) as end:

        def speak(rank, talk):
            sender = Sender(end.address, rank=rank)
            talk(sender)
            sender.close()

        threads = [threading.Thread(target=speak, args=(rank, talk)) for rank, talk in enumerate(talks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return list(end.last_events())


def test_all_that_was_said_is_heard(tmp_path):
    def talk(sender):
        sender.stage("loading")
        sender.towers([TowerRow(tower="language", should_train=True)])
        for step in range(50):
            sender.row({"step": step, "train/loss": float("nan")})
        sender.outcome({"step": 50})

    events = heard_from(tmp_path, talk)
    assert [name for name, _ in events] == ["here", "stage", "towers", *["row"] * 50, "outcome"]
    assert events[2][1] == ([TowerRow(tower="language", should_train=True)],)
    assert [arguments[0]["step"] for name, arguments in events if name == "row"] == list(range(50))


def test_the_first_process_alone_reports(tmp_path):
    def talk(sender):
        sender.stage("loading")
        sender.failed(BadContent(Problem("it is torn", "mend it", Where("a.jsonl", 3))))

    events = heard_from(tmp_path, talk, talk)
    assert sorted(name for name, _ in events) == ["failed", "failed", "here", "here", "stage"]
    failed = [arguments for name, arguments in events if name == "failed"]
    assert {arguments[0] for arguments in failed} == {0, 1}
    error = rebuilt(*failed[0][1:])
    assert type(error) is BadContent
    assert str(error) == "a.jsonl:3: it is torn\n  mend it"


def test_who_was_taken_in_late_is_heard(tmp_path, monkeypatch):
    """A process may speak and die while the launching one has no time to take its call."""
    real = Receiver.accept

    def late(self):
        time.sleep(0.7)
        real(self)

    monkeypatch.setattr(Receiver, "accept", late)
    events = heard_from(tmp_path, *[lambda sender: sender.failed(RunFailed("it broke"))] * 3)
    assert sorted(name for name, _ in events) == ["failed"] * 3 + ["here"] * 3


@pytest.mark.parametrize("kind", [InvalidInput, MissingOnHost, RunFailed])
def test_an_error_keeps_its_exit_code(kind):
    assert rebuilt(kind.__name__, (Problem("x"),), {}).exit_code == kind("x").exit_code


def test_what_was_measured_of_a_lack_of_memory_comes_along(tmp_path):
    def talk(sender):
        sender.failed(OutOfMemory("no room", "lower something", peak_bytes=78, gpu_bytes=80))

    (failed,) = [arguments for name, arguments in heard_from(tmp_path, talk) if name == "failed"]
    error = rebuilt(*failed[1:])
    assert type(error) is OutOfMemory
    assert (error.peak_bytes, error.gpu_bytes) == (78, 80)
    assert error.problems == (Problem("no room", "lower something"),)


def test_a_path_too_long_for_a_socket_is_told(tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(MissingOnHost, match="TMPDIR"), receiver(deep):
        pass
