"""Sampled softmax: who is drawn and how often, how near to the full loss, and what rows get."""

from __future__ import annotations

import math

import kernel_cases
import numpy as np
import pytest
import reference as ref
from case import Array, Case, draw, groups_of, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled_cases import head_sampled, some_rows
from sampled_reference import sampled_cross_entropy, sampled_cross_entropy_backward
from test_kernel_sums import ROWS, group_sums, powers_of_two, tree_onto
from test_kernels import EMPTY_GROUPS, bits, check, team
from tolerance import assert_close, chain, ratio

from crystalline._native import ISAS, Team, available_isas
from crystalline.decoder.candidates import UNIT, Candidates, expected_counts

# --- Who is drawn.


def zipf(V: int) -> Array:
    """Counts of a text's tokens, in no order; some tokens never stand there."""
    counts = 10 * V // np.arange(1, V + 1) ** 2
    return np.random.default_rng(V).permutation(counts).astype(np.int64)


SIZES = [(1, 1), (2, 1), (13, 1), (13, 5), (13, 12), (13, 13), (257, 100), (10000, 512)]


@pytest.mark.parametrize(("V", "S"), SIZES)
def test_expected_counts_add_up_and_follow_the_log_uniform_law(V: int, S: int) -> None:
    counts = zipf(V)
    e = Candidates(counts, S, 0, Team(1)).expected
    assert e.sum() == S * UNIT and e.min() >= 1 and e.max() <= UNIT
    rank = np.empty(V, np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(V)
    q = np.array([math.log((r + 2) / (r + 1)) for r in rank])
    # Below 1 they are proportional to q; at 1 they would be more.
    some = e < UNIT
    if some.any():
        factor = e[some].sum() / UNIT / q[some].sum()
        rounding = 2 * V / UNIT  # all of it may be one class's
        assert np.all(abs(e[some] / UNIT - factor * q[some]) < rounding)
        assert np.all(factor * q[~some] > 1 - rounding)
    else:
        assert S == V


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(weights=st.lists(st.integers(1, 2**41), min_size=1, max_size=40), data=st.data())
def test_expected_counts_of_any_weights(weights: list[int], data: st.DataObject) -> None:
    S = data.draw(st.integers(1, len(weights)))
    w = np.array(weights, np.int64)
    e = expected_counts(w, S)
    assert e.sum() == S * UNIT and e.min() >= 1 and e.max() <= UNIT
    assert np.all(np.diff(e[np.argsort(w, kind="stable")]) >= -len(w))  # rises, but for rounding


@pytest.mark.parametrize(("V", "S"), SIZES)
def test_draws_rise_and_follow_from_seed_and_place(V: int, S: int) -> None:
    c = Candidates(zipf(V), S, 3, Team(1))
    draws = [c.draw(place) for place in range(4)]
    for d in draws:
        assert d.dtype == np.int32 and d.shape == (12, S)
        assert d.min() >= 0 and d.max() < V and np.all(np.diff(d) > 0)
        # As evenly over the groups as can be.
        times, due = np.bincount(d.reshape(-1), minlength=V), 12 * c.expected / UNIT
        assert np.all((times >= np.floor(due)) & (times <= np.ceil(due)))
    again = Candidates(zipf(V), S, 3, Team(2))
    assert all(np.array_equal(again.draw(place), draws[place]) for place in (3, 0, 2))
    if (V, S) == (10000, 512):
        assert not np.array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], Candidates(zipf(V), S, 4, Team(1)).draw(0))


def test_every_class_is_drawn_as_often_as_expected() -> None:
    """A chi-square of 20,000 draws of 4 out of 13, with 12 degrees of freedom at most: 1 in 10,000
    is above 39."""
    V, S, n = 13, 4, 20000
    c = Candidates(zipf(V), S, 0, Team(1))
    drawn = np.zeros(V)
    for place in range(n):
        drawn[c.draw(place)[place % 12]] += 1
    e = c.expected / UNIT
    sure = c.expected == UNIT
    assert np.all(drawn[sure] == n) and not sure.all()
    variance = (n * e * (1 - e))[~sure]
    assert np.sum((drawn - n * e)[~sure] ** 2 / variance) < 39
    # Pairs are not always drawn together: the order is a new one each time.
    pairs = {(a, b) for place in range(500) for a in c.draw(place)[0] for b in c.draw(place)[0]
             if a < b}  # fmt: skip
    assert len(pairs) == V * (V - 1) // 2


@pytest.mark.parametrize("isa", ISAS)
def test_logs_of_expected_counts_are_the_same_bits_everywhere(isa: str) -> None:
    c, other = Candidates(zipf(257), 100, 0, team(isa, 2)), Candidates(zipf(257), 100, 0, Team(1))
    assert np.array_equal(c.log_expected, other.log_expected)
    assert np.allclose(c.log_expected, np.log(c.expected / UNIT), rtol=1e-6, atol=1e-7)


# --- How near to the full loss.


def full_and_sampled(V: int) -> tuple[Array, Array, Array]:
    return draw(40, 8), draw(V, 8, seed=1), np.random.default_rng(0).integers(0, V, 40, np.int32)


@pytest.mark.parametrize("V", [13, 300, 1003])
def test_all_classes_give_the_full_loss_and_its_gradients(V: int) -> None:
    h, w, targets = full_and_sampled(V)
    c, groups, scale = Candidates(zipf(V), V, 0, Team(1)), groups_of(40), 1 / 40
    assert np.array_equal(c.log_expected, np.zeros(V))
    losses, dh, dw = poison(40), poison(40, 8), np.zeros((V, 8), np.float32)
    work = np.empty(40, np.int32), np.empty(V + 1, np.int64)
    Team(2).head_sampled(
        losses, h, w, targets, groups, c.draw(7), c.log_expected, dh, dw, scale, *work
    )
    want_dh, want_dw = ref.linear_cross_entropy_backward(h, w, targets, scale)
    named = (h, w, targets)
    assert_close("cross_entropy.loss", losses, ref.linear_cross_entropy(*named), *named)
    assert_close("cross_entropy.dh", dh, want_dh, *named, scale)
    assert_close("cross_entropy.dw", dw, want_dw, *named, scale)


def test_the_loss_tends_to_the_full_one_as_more_are_sampled() -> None:
    V = 300
    h, w, targets = full_and_sampled(V)
    h = h / 2
    want = ref.linear_cross_entropy(h, w, targets).mean()
    want_dh, _ = ref.linear_cross_entropy_backward(h, w, targets, 1 / 40)
    loss_errors, dh_errors = [], []
    for S in (3, 30, 150, 270, 300):
        c = Candidates(zipf(V), S, 0, Team(1))
        inputs = [(h, w, targets, c.draw(place)[0], c.log_expected) for place in range(60)]
        loss = np.mean([sampled_cross_entropy(*i) for i in inputs])
        dh = np.mean([sampled_cross_entropy_backward(*i, 1 / 40)[0] for i in inputs], axis=0)
        loss_errors.append(abs(loss - want))
        dh_errors.append(np.linalg.norm(dh - want_dh) / np.linalg.norm(want_dh))
    for errors in (loss_errors, dh_errors):
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-6 < errors[-2] < 0.2 < errors[0]


# --- What the kernel does with odd shapes, groups and numbers.


SMALL = st.integers(1, 40)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(R=SMALL, D=SMALL, V=SMALL, data=st.data())
def test_any_shape(R: int, D: int, V: int, data: st.DataObject) -> None:
    S = data.draw(st.integers(1, V))
    cuts = data.draw(st.lists(st.integers(0, R), min_size=11, max_size=11))
    groups = np.array([0, *sorted(cuts), R], np.int64)
    c = head_sampled((R, D, V), groups=groups, S=S)
    assert len({bits(check(c, team(isa, 2))) for isa in available_isas()}) == 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("S", [1, 12, 13])
def test_thirteen_words_and_empty_groups(S: int, isa: str) -> None:
    c = head_sampled((11, 5, 13), groups=np.array(EMPTY_GROUPS, np.int64), S=S)
    want = bits(c.outputs(Team(1, "portable")))
    assert {bits(check(c, team(isa, threads))) for threads in (1, 3)} == {want}


def several_blocks() -> Case:
    """A block is 2^20 logits, but at least 48 rows: the first group needs three."""
    R, first = 150, 120
    groups = np.array([0, *[first] * 4, *[R] * 8], np.int64)
    return head_sampled((R, 2, 30000), groups=groups, S=25000)


@pytest.mark.parametrize("isa", ISAS)
def test_a_group_of_several_blocks(isa: str) -> None:
    c = several_blocks()
    outputs = c.outputs(team(isa, 3))
    for family, got, want, inputs, named in c.due(outputs):
        assert np.all(ratio(family, got, want, *inputs, **named) <= chain(25000)), family
    assert bits(outputs) == bits(c.outputs(team("portable", 1)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("R", "groups"), ROWS)
def test_dw_is_the_tree_of_chains_for_samples_and_then_for_targets(
    R: int, groups: Array, isa: str
) -> None:
    V = 9
    h, w, before = powers_of_two(R, 1), draw(V, 1), draw(V, 1, seed=5)
    targets = np.random.default_rng(R).integers(-1, V, R, np.int32)
    samples, log_expected = np.stack([some_rows(V, 5, g) for g in range(12)]), draw(V)
    group = np.repeat(np.arange(12), np.diff(groups))
    zero, one = np.zeros((V, 1), np.float32), np.array([0, *[1] * 12], np.int64)

    def dw_of(start: Array, rows: slice, groups: Array, samples: Array) -> Array:
        losses, dh, dw = poison(R)[rows], poison(R, 1)[rows], start.copy()
        work = np.empty(len(losses), np.int32), np.empty(V + 1, np.int64)
        team(isa, 2).head_sampled(
            losses, h[rows], w, targets[rows], groups, samples, log_expected, dh, dw, 1.0, *work
        )
        return dw

    # A row's samples and its target are different words: what it gives alone says which is which.
    alone = np.stack([
        dw_of(zero, slice(r, r + 1), one, samples[[group[r]] * 12]) for r in range(R)
    ])  # fmt: skip
    own = np.zeros_like(alone)
    own[np.arange(R)[targets >= 0], targets[targets >= 0]] = 1
    is_own = own.astype(bool)
    want = tree_onto(before, group_sums(np.where(is_own, 0, alone), groups))
    for v in range(V):  # a group in which the target does not stand adds nothing
        part = group_sums(np.where(is_own, alone, 0), groups)[:, v]
        want[v] = tree_onto(want[v], part)
    got = dw_of(before, slice(0, R), groups, samples)
    assert np.array_equal(got + 0.0, want + 0.0)  # no sign of a zero


@pytest.mark.parametrize("isa", ISAS)
def test_masked_targets_have_no_loss_and_no_gradient(isa: str) -> None:
    c = kernel_cases.head_sampled((13, 16, 300))
    a = c.arrays() | {"targets": np.full(13, -1, np.int32), "dw": np.zeros((300, 16), np.float32)}
    c.run(team(isa, 2), a)
    assert not a["losses"].any() and not a["dh"].any() and not a["dw"].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("operand", ["h", "w"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_get_lost(operand: str, bad: float, isa: str) -> None:
    c = head_sampled((37, 33, 1003))
    a = c.arrays()
    row = 0 if operand == "h" else c.reads["samples"][0, 0]
    a["targets"] = np.abs(a["targets"])
    a[operand] = a[operand].copy()
    a[operand][row] = bad
    c.run(team(isa, 2), a)
    assert not np.isfinite(a["losses"]).all()


# --- What is refused.


@pytest.mark.parametrize(
    ("name", "list_"), [("head_sampled", "samples"), ("adamw_rows", "rows"),
                        ("squared_norm_rows", "rows"), ("adamw_rest_rows", "rows")],
)  # fmt: skip
@pytest.mark.parametrize("bad", [[1, 0], [1, 1], [-1, 1], [1, 10**6]])
def test_a_list_that_does_not_rise_inside_the_table_is_refused(
    name: str, list_: str, bad: list[int]
) -> None:
    shape = (3, 4, 5) if name == "head_sampled" else (5, 4)
    c = kernel_cases.BUILDERS[name][0](shape)
    lists = np.array(bad, np.int32)
    if name == "head_sampled":
        lists = np.array([[0, 1]] * 11 + [bad], np.int32)
    with pytest.raises(ValueError, match=f"^{name}: rows and samples must rise"):
        c.run(Team(1), c.arrays() | {list_: lists})


@pytest.mark.parametrize("bad", [-1, 10])
def test_more_updates_than_there_were_are_refused(bad: int) -> None:
    c = kernel_cases.adamw_rest_rows((5, 4))
    with pytest.raises(ValueError, match=r"^adamw_rest_rows: "):
        c.run(Team(1), c.arrays() | {"last": np.full(5, bad, np.int32)})


def test_gradients_come_together_and_with_work_space() -> None:
    c = head_sampled((3, 4, 5))
    a = c.arrays()
    call = [a[n] for n in ("losses", "h", "w", "targets", "groups", "samples", "log_expected")]
    with pytest.raises(ValueError, match="dh and dw come together"):
        Team(1).head_sampled(*call, a["dh"])
    with pytest.raises(ValueError, match="gradients need order"):
        Team(1).head_sampled(*call, a["dh"], a["dw"])
    a["samples"] = np.empty((12, 0), np.int32)
    with pytest.raises(ValueError, match="a size is zero"):
        c.run(Team(1), a)


def test_lists_that_are_written_may_not_be_those_that_are_read() -> None:
    """Or rows are taken from a list that changes meanwhile, and what is no row is written to."""
    c = head_sampled((5, 4, 5))
    a = c.arrays()
    with pytest.raises(ValueError, match="head_sampled: order overlaps targets"):
        c.run(Team(1), a | {"order": a["targets"]})
    c = kernel_cases.adamw_rest_rows((5, 4))
    a = c.arrays()
    with pytest.raises(ValueError, match="adamw_rest_rows: last overlaps rows"):
        c.run(Team(1), a | {"rows": a["last"][1:3]})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at", [0, 3, 8, 15])
def test_what_is_not_a_number_hides_no_other_moment(at: int, isa: str) -> None:
    """Among sixteen neighbours, one of them not a number, the others go on as by dense AdamW."""
    t, past = team(isa, 2), np.array([[0.9, 0.1, 0.5]], np.float32)
    named = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    for other in range(16):
        m = np.zeros((1, 16), np.float32)
        m[0, other], m[0, at] = 2.0, np.nan
        p, v = draw(1, 16), np.full((1, 16), 0.25, np.float32)
        want = p.copy(), m.copy(), v.copy()
        t.adamw(
            *(a[0] for a in want), np.zeros(16, np.float32), grad_scale=1.0, decay=0.9,
            step_size=0.1, root_bias2=0.5, **named,
        )  # fmt: skip
        t.adamw_rest_rows(
            p, m, v, np.zeros(1, np.int32), np.zeros(1, np.int32), past, **named
        )
        for got, due in zip((p, m, v), want, strict=True):
            assert np.array_equal(got, due, equal_nan=True), other
