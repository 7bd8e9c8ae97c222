"""Which name of a checkpoint is which of a module, and what people may give as names."""

import json

import pytest

from relax_inplace.weight_names import (
    RULES,
    given_names,
    made_from,
    match_names,
    names_to_look_for,
    near_names,
    own_names,
    read_names,
)

EQUAL, PRINTED, EXPORTED, FILE_PREFIX, MODULE_PREFIX = RULES


@pytest.mark.parametrize(
    ("rule", "wanted", "stored"),
    [
        (EQUAL, ["a.w", "b"], ["b", "a.w"]),
        (PRINTED, ["layers_0_w", "b_w"], ["layers.0.w", "b-w"]),
        (EXPORTED, ["p_fc_weight", "b_norm_running_mean"], ["fc.weight", "norm.running_mean"]),
        (EXPORTED, ["p_big_w", "c_x"], ["Big.w", "x"]),
        (FILE_PREFIX, ["layers.0.w", "embed.w"], ["model.layers.0.w", "model.embed.w"]),
        (FILE_PREFIX, ["layers_0_w", "embed_w"], ["model.layers.0.w", "model.embed.w"]),
        (FILE_PREFIX, ["p_fc_w", "p_b"], ["model.Fc.w", "model.b"]),
        (MODULE_PREFIX, ["model_layers_0_w", "model_b"], ["layers.0.w", "b"]),
    ],
)
def test_rules(rule, wanted, stored):
    found, rules = match_names(wanted, [*stored, "inv_freq", "other.w"])
    expected = stored if rule != EQUAL else wanted
    assert found == dict(zip(wanted, expected, strict=True))
    assert set(rules.values()) == {rule}


@pytest.mark.parametrize(
    ("wanted", "stored"),
    [
        (["w"], ["a.w", "b.w"]),  # under two prefixes
        (["a_b"], ["a.b", "a-b"]),  # printed the same
        (["p_x", "b_x"], ["x"]),
        (["p_x", "b_y"], ["X", "x", "y"]),
        (["layers.0.w", "head"], ["model.layers.0.w", "head"]),  # of one only
        (["embed.w"], ["my_embed.w"]),  # not a whole part of a name
        (["FC.w"], ["fc.w"]),  # not of torch.export: letters are what they are
        (["w"], []),
    ],
)
def test_no_rule_guesses(wanted, stored):
    """Each holds for all weights, once, or for none."""
    found = match_names(wanted, stored).found
    assert not set(wanted) - {"head"} & set(found)


def test_what_torch_exported_and_what_somebody_named():
    found, rules = match_names(["p_Fc_w", "x", "p_b"], ["fc.w", "x", "B"])
    assert found == {"p_Fc_w": "fc.w", "x": "x", "p_b": "B"}
    assert rules == {"p_Fc_w": EXPORTED, "x": EQUAL, "p_b": EXPORTED}


def test_equal_names_go_before_others():
    found = match_names(["a_b", "c"], ["a.b", "a_b", "c"]).found
    assert found == {"a_b": "a_b", "c": "c"}


def test_of_tied_weights_one_will_do():
    tied = [("embed", "head")]
    assert match_names(["embed", "up", "head"], ["m.head", "m.up"], tied).found == {
        "up": "m.up",
        "head": "m.head",
    }
    assert match_names(["embed", "up", "head"], ["m.up"], tied).found == {}


def test_many_names_are_matched_in_little_time():
    """Each rule costs what the names are, not their square."""
    wanted = [f"layers_{i}_w" for i in range(20_000)]
    stored = [f"model.layers.{i}.w" for i in range(20_000)]
    assert len(match_names(wanted, stored).found) == 20_000


def test_nearly():
    missing, stored = ["layers.0.w", "layers.1.w", "head"], ["m.layers.0.w", "m.layers.1.w", "x"]
    assert near_names(missing, stored) == ("m.layers.0.w", "layers.0.w", 2)
    assert near_names(["a", "b", "c"], stored) is None


def test_fields_without_a_name_of_their_own():
    assert own_names(["a", "", "a", ""], "params") == ["a", "params[1]", "a[2]", "params[3]"]


def test_what_is_made_from_a_weight():
    called = {"q": "model.q", "layer.1": "l1"}
    assert [made_from(one, called) for one in ("q", "q.1", "layer.1", "layer.2", "x.1")] == [
        "model.q",
        "model.q.1",
        "l1",
        "layer.2",
        "x.1",
    ]


OWN = ["a", "b"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["a", "b"]),
        (["x", "y"], ["x", "y"]),
        ({"a": "x"}, ["x", "b"]),
        ({"a": "x", "other": "y"}, ["x", "b"]),
        (str.upper, ["A", "B"]),
    ],
)
def test_given(given, expected, tmp_path):
    assert given_names(given, OWN, "`f`") == expected
    if isinstance(given, (dict, list)):
        path = tmp_path / "names.json"
        path.write_text(json.dumps(given))
        assert given_names(path, OWN, "`f`") == given_names(str(path), OWN, "`f`") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x"], "1 given, 1 of them different, for 2 weights of `f`; expected one for each"),
        (["x", "x"], "2 given, 1 of them different"),
        ({"a": "b"}, "2 given, 1 of them different"),
        (lambda name: "x", "2 given, 1 of them different"),
        (lambda name: None, "None given for a weight of `f`, expected text"),
        ({"x": "y"}, "'x' are no weights of `f`, expected some of 'a', 'b'$"),
        ({"x": "a"}, "it is the other way round"),
    ],
)
def test_given_that_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        given_names(given, OWN, "`f`")


def test_either_way_round_where_there_are_files():
    stored = ["m.a", "b"]
    assert names_to_look_for({"a": "m.a"}, OWN, stored, "`f`") == ["m.a", "b"]
    assert names_to_look_for({"m.a": "a"}, OWN, stored, "`f`") == ["m.a", "b"]
    assert names_to_look_for({"old": "a"}, OWN, stored, "`f`") == ["a", "b"]  # built with them
    with pytest.raises(ValueError, match="'x' are no weights"):
        names_to_look_for({"x": "y"}, OWN, stored, "`f`")


@pytest.mark.parametrize("text", ['"x"', '{"a": 1}', "[1]", "{", "null", "[" * 100_000])
def test_files_that_hold_no_names(text, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"names\.json: expected JSON, an object"):
        read_names(path)
    with pytest.raises(ValueError, match="No such file"):
        read_names(tmp_path / "gone.json")
