"""Long and wide tables of choices: their designs, round trips between both, and errors."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.data.choices import choices_from_long, choices_from_wide
from pyro_mixtures.errors import DataError, OptionError

LONG = pd.DataFrame(
    {
        "id": [9, 9, 9, 9, 9, 4, 4],
        "task": ["b", "b", "a", "a", "a", "a", "a"],
        "mode": ["bus", "car", "car", "bus", "walk", "walk", "car"],
        "cost": [1.0, 5.0, 6.0, 2.0, 0.0, 0.0, 7.0],
        "income": [3.0, 3.0, 3.0, 3.0, 3.0, 8.0, 8.0],
        "taken": [0, 1, 1, 0, 0, 1, 0],
        "weight": [2, 2, 2, 2, 2, 1, 1],
    }
)
KEYS = {"chooser": "id", "situation": "task", "alternative": "mode", "chosen": "taken"}


def edited(column, line, value):
    table = LONG.copy()
    table[column] = table[column].astype(object)
    table.loc[line, column] = value
    return table


def test_lines_of_a_long_table_are_placed_by_their_labels():
    table = choices_from_long(
        LONG,
        **KEYS,
        generic=["cost"],
        specific=["income"],
        reference="car",
        covariates=["income"],
        weight="weight",
    )
    assert table.alternatives == ("bus", "car", "walk")
    assert table.choosers == (9, 4)
    assert table.coefficients == (
        "cost",
        "income:bus",
        "income:walk",
        "constant:bus",
        "constant:walk",
    )
    assert table.available.tolist() == [
        [[True, True, False], [True, True, True]],
        [[False, True, True], [False] * 3],
    ]
    assert table.chosen.tolist() == [[1, 1], [2, -1]]
    assert table.covariates.tolist() == [[3.0], [8.0]]
    assert table.row_weight.tolist() == [2.0, 1.0]
    assert table.design[0, 1].tolist() == [[2, 3, 0, 1, 0], [6, 0, 0, 0, 0], [0, 0, 3, 0, 1]]
    assert table.design[1, 0].tolist() == [[0] * 5, [7, 0, 0, 0, 0], [0, 0, 8, 0, 1]]
    assert table.design[1, 1].abs().sum() == 0
    assert [row.shape for row in table.rows] == [(2, 2, 3, 5), (2, 2, 3), (2, 2), (2, 1), (2,)]


def test_specific_attributes_of_alternatives_have_a_coefficient_for_each():
    table = choices_from_long(LONG, **KEYS, specific=["cost"], constants=False)
    assert table.coefficients == ("cost:bus", "cost:car", "cost:walk")
    assert table.design[0, 1].tolist() == [[2, 0, 0], [0, 6, 0], [0, 0, 0]]
    assert len(table.rows) == 3
    assert "2 choosers, 3 choices" in repr(table)


def test_without_situations_every_chooser_has_one():
    lines = LONG.assign(both=LONG["id"].astype(str) + LONG["task"])
    each = choices_from_long(
        lines, chooser="both", alternative="mode", chosen="taken", generic=["cost"]
    )
    same = choices_from_long(
        lines, situation="both", alternative="mode", chosen="taken", generic=["cost"]
    )
    assert each.choosers == same.choosers == ("9b", "9a", "4a")
    assert torch.equal(each.design, same.design)
    assert each.chosen.tolist() == [[1], [1], [2]]


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_tensors_have_the_requested_dtype(dtype):
    table = choices_from_long(LONG, **KEYS, generic=["cost"], weight="weight", dtype=dtype)
    assert {table.design.dtype, table.row_weight.dtype} == {dtype or torch.float32}
    assert (table.available.dtype, table.chosen.dtype) == (torch.bool, torch.int64)


def test_order_of_alternatives_can_be_given():
    table = choices_from_long(LONG, **KEYS, generic=["cost"], alternatives=["walk", "car", "bus"])
    assert table.coefficients == ("cost", "constant:car", "constant:bus")
    assert table.chosen.tolist() == [[1, 1], [0, -1]]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    choosers=st.integers(1, 6),
    situations=st.integers(1, 4),
    shuffle=st.booleans(),
    panel=st.booleans(),
)
def test_long_and_wide_tables_of_the_same_choices_are_equal(
    seed, choosers, situations, shuffle, panel
):
    random = np.random.default_rng(seed)
    n = choosers * situations
    wide = pd.DataFrame(
        {f"{name}_{a}": random.normal(size=n) for a in "xyz" for name in ("cost", "time")}
    )
    wide["who"] = np.repeat(np.arange(choosers), situations) * 3
    wide["age"] = (wide["who"] + 1) / 2
    wide["task"] = np.arange(n) if panel else 0
    open_ = random.random((n, 3)) < 0.6
    open_[np.arange(n), random.integers(3, size=n)] = True
    wide["choice"] = ["xyz"[j] for j in np.where(open_, random.random((n, 3)), -1).argmax(1)]
    wide[["open_x", "open_y", "open_z"]] = open_.astype(int)
    for j, a in enumerate("xyz"):
        wide.loc[~open_[:, j], f"cost_{a}"] = np.nan
    if not panel:
        wide["who"] = np.arange(n)
        wide["age"] = wide["who"] / 7
    lines = [
        {
            **{"who": r.who, "task": r.task, "mode": a, "taken": r.choice == a, "age": r.age},
            **{name: r[f"{name}_{a}"] for name in ("cost", "time")},
        }
        for _, r in wide.iterrows()
        for j, a in enumerate("xyz")
        if r[f"open_{a}"]
    ]
    long = pd.DataFrame(lines)
    if shuffle:  # within situations: choosers keep the order of their first lines
        long = long.iloc[np.lexsort([random.random(len(long)), long["task"], long["who"]])]
    options = {
        "specific": ["time", "age"],
        "covariates": ["age"],
        "weight": "age",
        "dtype": torch.float64,
    }
    if n > 1 or open_.sum() > 1:
        modes = {a: {"cost": f"cost_{a}", "time": f"time_{a}"} for a in "xyz"}
        try:
            first = choices_from_wide(
                wide,
                chosen="choice",
                alternatives=modes,
                available={a: f"open_{a}" for a in "xyz"},
                chooser="who" if panel else None,
                reference="y",
                **options,
            )
        except DataError as error:  # no situation has two alternatives
            assert "cost" in str(error) and (open_.sum(1) == 1).all()  # noqa: PT017, PT018
            return
        second = choices_from_long(
            long,
            chooser="who",
            situation="task",
            alternative="mode",
            chosen="taken",
            generic=["cost"],
            reference="y",
            alternatives=list("xyz"),
            **options,
        )
        for mine, theirs in zip(first, second, strict=True):
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        chosen = first.chosen[first.chosen >= 0]
        assert ["xyz"[j] for j in chosen.tolist()] == wide["choice"].tolist()


def test_numbers_may_replace_columns_of_a_wide_table():
    lines = {"choice": ["car", "walk"], "price": [3.0, 4.0], "rain": [0.0, 1.0]}
    modes = {"car": {"cost": "price"}, "walk": {"cost": 0}}
    table = choices_from_wide(
        lines, chosen="choice", alternatives=modes, specific=["rain"], reference="car"
    )
    assert table.coefficients == ("cost", "rain:walk", "constant:walk")
    assert table.design[1, 0].tolist() == [[4, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("column", "line", "value", "message"),
    [
        ("taken", 0, 1, "chooser 9, situation 'b': 2 available alternatives are chosen"),
        ("taken", 2, 0, "chooser 9, situation 'a': 0 available alternatives are chosen"),
        ("taken", 2, 3, "'taken' is 3 in line 2: use 0 or 1"),
        ("cost", 4, np.nan, "'cost' is nan for chooser 9, situation 'a', alternative 'walk'"),
        ("cost", 4, np.inf, "'cost' is inf for chooser 9"),
        ("cost", 4, "free", "'cost' does not contain numbers"),
        ("mode", 4, "car", "chooser 9, situation 'a' lists alternative 'car' twice"),
        ("mode", 4, None, "'mode' is empty in line 4"),
        ("income", 4, 2.0, "'income' has several values for chooser 9"),
        ("weight", slice(None), -1, "'weight' is negative for chooser 9"),
    ],
)
def test_invalid_lines_are_refused(column, line, value, message):
    options = {"generic": ["cost"], "covariates": ["income"], "weight": "weight"}
    with pytest.raises(DataError, match=message):
        choices_from_long(edited(column, line, value), **KEYS, **options)


def test_chosen_alternative_must_be_available():
    lines = LONG.assign(there=[1, 0, 1, 1, 1, 1, 1])
    with pytest.raises(DataError, match="line 1 is chosen, but not available: column 'there' is 0"):
        choices_from_long(lines, **KEYS, generic=["cost"], available="there")
    lines = LONG.assign(there=[1, 1, 1, 1, 0, 1, 1], cost=LONG["cost"].where(LONG.index != 4))
    found = choices_from_long(lines, **KEYS, generic=["cost"], available="there")
    assert found.available[0, 1].tolist() == [True, True, False]


def test_chosen_situations_without_available_alternatives_are_refused():
    """They must not be left out without a word, together with their choosers."""
    closed = LONG.assign(there=[0, 0, 1, 1, 1, 0, 0])
    with pytest.raises(DataError, match="line 1 is chosen, but not available"):
        choices_from_long(closed, **KEYS, generic=["cost"], available="there")
    with pytest.raises(DataError, match="line 1 is chosen, but not available"):
        choices_from_long(
            closed.assign(taken=closed["taken"] == 1), **KEYS, generic=["cost"], available="there"
        )
    untaken = closed.assign(taken=[0, 0, 1, 0, 0, 0, 0])
    assert choices_from_long(untaken, **KEYS, generic=["cost"], available="there").choosers == (9,)
    with pytest.raises(DataError, match="'there' is 0 in all lines"):
        choices_from_long(
            LONG.assign(there=0, taken=0), **KEYS, generic=["cost"], available="there"
        )
    wide = {
        "choice": ["b", "c", "b"],
        "b": [1.0, 2, 3],
        "c": [3.0, 3, 1],
        "open_b": [1, 0, 1],
        "open_c": [1, 0, 1],
    }
    modes = {"b": {"cost": "b"}, "c": {"cost": "c"}}
    with pytest.raises(
        DataError, match="line 1 is chosen, but not available: column 'open_c' is 0"
    ):
        choices_from_wide(
            wide, chosen="choice", alternatives=modes, available={"b": "open_b", "c": "open_c"}
        )


def test_columns_and_alternatives_must_be_unique():
    with pytest.raises(OptionError, match="'cost' is given twice"):
        choices_from_long(LONG, **KEYS, generic=["cost"], specific=["cost"])
    with pytest.raises(OptionError, match="'cost' is given twice"):
        choices_from_long(LONG, **KEYS, generic=["cost", "cost"])
    with pytest.raises(OptionError, match="give each of them once"):
        choices_from_long(
            LONG, **KEYS, generic=["cost"], alternatives=["bus", "bus", "car", "walk"]
        )
    with pytest.raises(DataError, match="several columns 'cost'"):
        choices_from_long(pd.concat([LONG, LONG[["cost"]]], axis=1), **KEYS, generic=["cost"])
    with pytest.raises(OptionError, match=r"dtype=torch.int64: pass a floating-point dtype"):
        choices_from_long(LONG, **KEYS, generic=["cost"], dtype=torch.int64)


def test_invalid_options_are_refused():
    with pytest.raises(DataError, match=r"no columns \['price'\]; it has"):
        choices_from_long(LONG, **KEYS, generic=["price"])
    with pytest.raises(DataError, match="'income' is the same for all alternatives"):
        choices_from_long(LONG, **KEYS, generic=["income"])
    with pytest.raises(OptionError, match="reference='boat'"):
        choices_from_long(LONG, **KEYS, reference="boat")
    with pytest.raises(OptionError, match="no columns: pass generic"):
        choices_from_long(LONG, **KEYS, constants=False)
    with pytest.raises(OptionError, match="chooser="):
        choices_from_long(LONG, alternative="mode", chosen="taken")
    with pytest.raises(DataError, match="'walk' is not one of the alternatives"):
        choices_from_long(LONG, **KEYS, alternatives=["bus", "car"])
    with pytest.raises(DataError, match="no lines"):
        choices_from_long(LONG[:0], **KEYS)


def test_invalid_options_of_wide_tables_are_refused():
    lines = {"choice": ["a", "b"], "cost": [1.0, 2.0], "price": [2.0, 1.0]}
    modes = {"a": {"money": "cost"}, "b": {"money": "price"}}
    with pytest.raises(DataError, match="'b', which is not one of the alternatives"):
        choices_from_wide(lines, chosen="choice", alternatives={"a": modes["a"], "c": modes["b"]})
    with pytest.raises(OptionError, match=r"alternative 'b' has no \['money'\]"):
        choices_from_wide(lines, chosen="choice", alternatives={"a": modes["a"], "b": {}})
    with pytest.raises(OptionError, match="at least two keys"):
        choices_from_wide(lines, chosen="choice", alternatives={"a": modes["a"]})
    with pytest.raises(OptionError, match=r"available= names \['c'\]"):
        choices_from_wide(lines, chosen="choice", alternatives=modes, available={"c": "cost"})
    with pytest.raises(OptionError, match="rename"):
        choices_from_wide(
            {**lines, "money": [0.0, 0.0]},
            chosen="choice",
            alternatives=modes,
            covariates=["money"],
        )
    with pytest.raises(DataError, match=r"no columns \['fare'\]"):
        choices_from_wide(lines, chosen="choice", alternatives={**modes, "b": {"money": "fare"}})


def test_missing_pandas_is_a_data_error(monkeypatch):
    import importlib

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DataError, match="pip install pandas"):
        choices_from_long(LONG, **KEYS, generic=["cost"])
