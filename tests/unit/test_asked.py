"""Prompts, answers and training data as text, for judges and tasks."""

from prefopt.data.records import PreferencePair, SFTExample
from prefopt.evaluation import asked
from prefopt.evaluation.asked import Asked, labelled_pairs, read_trained
from prefopt.evaluation.judges.judge import LabelledPair


def pair(number: int) -> PreferencePair:
    said = [{"role": "assistant", "content": f" y{number} "}], [{"role": "assistant", "content": "n"}]
    return PreferencePair([{"role": "user", "content": f"p{number}"}], *said, None, {}, f"a:{number}", tag="t")


def test_pairs_and_demonstrations_become_text():
    shown = SFTExample(prompt="q", completion="a", source="b:1")
    assert labelled_pairs([pair(1), shown]) == [LabelledPair("p1", "y1", "n")]
    assert read_trained([pair(1), shown], 0) == [LabelledPair("p1", "y1", "n"), LabelledPair("q", "a", "")]
    assert read_trained([SFTExample(text="once", source="b:2")], 0) == []
    assert Asked.of(pair(1)) == Asked("a:1", "p1", " y1 ", "", "t", "n")


def test_of_many_rows_a_sample_is_read_the_same_each_time(monkeypatch, caplog):
    monkeypatch.setattr(asked, "MOST_TRAINED", 5)
    rows = [pair(number) for number in range(50)]
    with caplog.at_level("INFO"):
        found = read_trained(rows, 0)
    assert len(found) == 5
    assert "a sample of 5 of 50 rows" in caplog.text
    assert found == read_trained(rows, 0) != read_trained(rows, 1)
    assert [each.prompt for each in found] == sorted((each.prompt for each in found), key=lambda name: int(name[1:]))
