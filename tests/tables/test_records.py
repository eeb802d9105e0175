"""Short reprs of what has many fields."""

import pandas as pd

from flowlab import Member, Schema


def test_a_column_shows_what_was_found_and_nothing_internal():
    table = pd.DataFrame({"n": [3, 1, 2, 2], "c": pd.Categorical(list("abca"), list("abcd")), "k": 1})
    schema = Schema.infer(table, {"n": "integer"})
    text = repr(schema["n"])
    assert text.startswith("ColumnSchema(name='n', kind='integer', dtype='int64', ")
    for absent in ("spellings", "tolerance", "null", "recoding", "weights=[]", "categories"):
        assert absent not in text
    assert "categories=['a', 'b', 'c']" in repr(schema["c"])
    assert "value=1" in repr(schema["k"])
    assert len(text) < 200


def test_long_lists_are_cut():
    table = pd.DataFrame({"c": [f"level {j % 40}" for j in range(400)]})
    text = repr(Schema.infer(table)["c"])
    assert "and 32 more]" in text
    assert len(text) < 300


def test_a_member_shows_what_was_asked_for():
    assert repr(Member("mixed", steps=60, hidden=(16,))) == "Member(kind='mixed', hidden=(16,), steps=60)"
    member = Member("spline", "marginal", dropout=0.1)
    assert repr(member) == "Member(kind='spline', preprocessing='marginal', dropout=0.1)"
