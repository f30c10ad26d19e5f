"""One command at a time uses a run; a lock that a killed one left is taken over."""

from tests.faults.harness import MODES, REFUSED, Attempt, Fault, killed
from tests.faults.hooks import Injection
from tests.faults.places import PLACES


def test_a_second_command_on_a_run_in_use_is_refused_and_does_no_harm(arena):
    folder, mode = arena.new_folder(), MODES["ddp"]

    def strike(attempt: Attempt) -> list[int]:
        attempt.wait_until_reached()
        second = arena.start(mode, folder)
        refused = second.wait()
        attempt.release()
        assert refused == [REFUSED, REFUSED]
        assert "in use by process" in second.ranks.output()
        return attempt.wait()

    at = PLACES["between backward and optimizer"].at(3)
    arena.survive(mode, Fault("a second command", strike, at, frozenset({0}), "done"), folder=folder)


def test_a_lock_that_a_killed_run_left_is_taken_over(arena):
    taken = Fault("none", Attempt.wait, None, frozenset({0}), "done", ("taken over",))
    arena.survive(MODES["single"], killed("in a step", PLACES["before a forward"].at(3)), taken)


def test_a_kill_while_the_lock_is_taken_leaves_no_lock(arena):
    at = Injection("os:link", match=".lock")
    arena.survive(MODES["single"], killed("while the lock is taken", at))
