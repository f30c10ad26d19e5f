"""A file system that fails during a save costs that checkpoint and nothing else; one that is read-only is refused."""

import errno
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.harness import MODES, NAME, REFUSED, Attempt, Fault, killed, remount, survived
from tests.faults.hooks import Injection
from tests.faults.places import PLACES, SAVER

GOES_ON = "Training goes on; the next save tries again."


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(arena, mount):
    folder = arena.new_folder()
    with mount(folder, "1500k"):

        def strike(attempt: Attempt) -> list[int]:
            attempt.wait_until_reached()
            left = [path.name for path in (attempt.run / "checkpoints").iterdir()]
            remount(folder, "size=64m")
            attempt.release()
            assert left == [], "the partial checkpoint of step 4 is still there"
            return attempt.wait()

        second_save = Injection(f"{SAVER}.save", call=2, rank=0)
        messages = ("checkpoint: step 4 could not be saved", "No space left on device", GOES_ON)
        full = Fault("a full disk", strike, second_save, frozenset({0}), "done", messages)
        arena.survive(MODES["zero2"], full, folder=folder)


def test_a_quota_that_one_rank_meets_is_heard_of_by_all(arena):
    at = Injection("torch:save", "fail", call=1, rank=1, value=errno.EDQUOT)
    arena.survive(MODES["zero3"], survived("quota", at, "step 4 could not be saved", "quota", GOES_ON))


def test_a_run_folder_that_has_become_read_only_is_refused_and_left_as_it_is(arena, mount):
    folder = arena.new_folder()
    with mount(folder / "runs") as root:

        def content() -> set[tuple[str, float]]:
            return {(str(path), path.stat().st_mtime) for path in root.rglob("*")}

        before = set()

        def close(run):
            remount(root, "ro")
            before.update(content())

        def open_again(run):
            assert content() == before
            remount(root, "rw")

        broken = killed("in a step", PLACES["between backward and optimizer"].at(7))
        first = Fault(broken.name, broken.strike, broken.injection, afterwards=close)
        messages = (f"{root / NAME}: cannot be written", "Set run.root.")
        refused = Fault(
            "read-only", Attempt.wait, codes=frozenset({REFUSED}), messages=messages, afterwards=open_again
        )
        arena.survive(MODES["ddp"], first, refused, folder=folder)


def test_a_read_only_root_is_refused_before_anything_is_written(arena, mount):
    folder = arena.new_folder()
    with mount(folder / "runs") as root:
        remount(root, "ro")
        attempt = arena.start(MODES["ddp"], folder)
        assert attempt.wait() == [REFUSED, REFUSED]
        assert "cannot be written" in attempt.ranks.output()
        assert list(root.iterdir()) == []


STOPPED = frozenset({REFUSED})


def test_a_log_line_that_cannot_be_written_stops_all_ranks_with_a_checkpoint_and_is_not_lost(arena):
    at = Injection("prefopt.tracking.metrics:MetricsLog.write_waiting", "fail", call=4, rank=0, value=errno.ENOSPC)
    messages = (
        "cannot be written (No space left on device). Free space there",
        "it goes on from its newest checkpoint",
    )
    arena.survive(MODES["ddp"], Fault("a full disk", Attempt.wait, at, STOPPED, "failed", messages))


def test_a_disk_that_fills_up_between_two_saves_ends_the_run_in_words_and_with_a_true_status(arena, mount):
    folder = arena.new_folder()
    with mount(folder / "runs", "8m") as root:
        filler = root / "filler"

        def strike(attempt: Attempt) -> list[int]:
            attempt.wait_until_reached()
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            attempt.release()
            return attempt.wait()

        def make_room(run: Path) -> None:
            filler.unlink()
            remount(root, "size=64m")

        at = PLACES["before a log line"].at(3)
        messages = ("cannot be written", "No space left on device")
        full = Fault("a full disk", strike, at, STOPPED, "failed", messages, afterwards=make_room)
        arena.survive(MODES["single"], full, folder=folder)


@pytest.mark.parametrize("mode", ["single", "ddp"])
def test_a_run_whose_folder_is_renamed_stops_makes_no_other_one_and_goes_on_once_it_is_back(arena, mode):
    folder = arena.new_folder()
    elsewhere = folder / "elsewhere"

    def strike(attempt: Attempt) -> list[int]:
        attempt.wait_until_reached()
        attempt.run.rename(elsewhere)
        attempt.release()
        return attempt.wait()

    def bring_back(run: Path) -> None:
        assert not run.parent.exists(), "something was made where the run was"
        run.parent.mkdir()
        elsewhere.rename(run)

    messages = ("is gone, renamed or removed while the run was on. Put it back",)
    renamed = Fault(
        "a new name", strike, PLACES["before a log line"].at(3), STOPPED, None, messages, afterwards=bring_back
    )
    arena.survive(MODES[mode], renamed, folder=folder)
