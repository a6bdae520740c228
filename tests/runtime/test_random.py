"""Randomness is a function of seed, stream, step and name, and of nothing else."""

import pytest
import torch

from gantx.runtime.random import Draw, RandomInputs, draw, for_seeds, take

CPU = torch.device("cpu")
SPEC = {
    "z": Draw("normal", (8, 16)),
    "alpha": Draw("uniform", (8, 1, 1, 1)),
    "augment": {
        "shift": Draw("integers", (8, 2), low=-3, high=4),
        "coin": Draw("uniform", (), per="batch"),
    },
}


def make(spec=SPEC, seed=1, stream="D", step=3):
    return draw(spec, seed=seed, stream=stream, step=step, device=CPU)


def leaves(draws, path=""):
    for name, value in draws.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def same(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shapes_kinds_and_types():
    drawn = make()
    assert {name: (tuple(value.shape), value.dtype) for name, value in leaves(drawn)} == {
        "z": ((8, 16), torch.float32),
        "alpha": ((8, 1, 1, 1), torch.float32),
        "augment.shift": ((8, 2), torch.int64),
        "augment.coin": ((), torch.float32),
    }


def test_the_same_question_has_the_same_answer_whatever_was_drawn_between():
    first = make()
    torch.manual_seed(0)
    torch.randn(100)
    make(seed=9)
    assert same(first, make())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    make()
    for_seeds({"z": Draw("normal", (1, 4))}, [1, 2], CPU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 2}, {"stream": "G"}, {"step": 4}])
def test_seed_stream_and_step_change_every_leaf(change):
    other = dict(leaves(make(**change)))
    for name, value in leaves(make()):
        assert not torch.equal(value, other[name]), name


def test_seed_stream_and_step_are_not_run_together():
    spec = {"z": Draw("normal", (4,))}
    assert not same(
        draw(spec, seed=1, stream="1", step=11, device=CPU),
        draw(spec, seed=11, stream="1", step=1, device=CPU),
    )


def test_leaves_of_equal_shape_differ_by_name_and_by_place():
    spec = {
        "a": Draw("normal", (4,)),
        "b": Draw("normal", (4,)),
        "c": {"a": Draw("normal", (4,)), "b": Draw("normal", (4,))},
    }
    values = [tuple(value.tolist()) for _, value in leaves(make(spec))]
    assert len(set(values)) == 4


def test_order_of_the_leaves_does_not_matter():
    turned = {name: SPEC[name] for name in reversed(SPEC)}
    turned["augment"] = {name: SPEC["augment"][name] for name in reversed(SPEC["augment"])}
    assert list(turned) != list(SPEC)
    assert same(make(turned), make())


def test_a_new_leaf_shifts_no_old_one():
    more = {"first": Draw("normal", (3,)), **SPEC, "noise": {"block": Draw("normal", (8, 4))}}
    more["augment"] = {"before": Draw("uniform", (8,)), **SPEC["augment"]}
    drawn = make(more)
    for name in ("first", "noise"):
        del drawn[name]
    del drawn["augment"]["before"]
    assert same(drawn, make())


def test_a_changed_leaf_shifts_no_other():
    drawn = dict(leaves(make({**SPEC, "alpha": Draw("normal", (8, 32))})))
    for name, value in leaves(make()):
        assert torch.equal(value, drawn[name]) == (name != "alpha")


def test_ranges():
    spec = {
        "normal": Draw("normal", (20_000,)),
        "uniform": Draw("uniform", (20_000,)),
        "integers": Draw("integers", (20_000,), low=-2, high=3),
    }
    drawn = make(spec)
    assert abs(drawn["normal"].mean()) < 0.03
    assert abs(drawn["normal"].std() - 1) < 0.03
    assert drawn["uniform"].min() >= 0
    assert drawn["uniform"].max() < 1
    assert abs(drawn["uniform"].mean() - 0.5) < 0.01
    assert drawn["integers"].unique().tolist() == [-2, -1, 0, 1, 2]


def test_steps_are_unrelated():
    spec = {"z": Draw("normal", (4096,))}
    one, other = make(spec, step=1)["z"], make(spec, step=2)["z"]
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.08


def test_an_unknown_kind_is_an_error():
    with pytest.raises(KeyError, match="gaussian"):
        make({"z": Draw("gaussian", (4,))})


def test_take_slices_samples_and_passes_batch_draws_through():
    spec = {**SPEC, "table": Draw("normal", (8, 2), per="batch")}  # as long as the batch, and yet not sliced
    drawn = make(spec)
    part = take(drawn, spec, slice(2, 5))
    assert torch.equal(part["z"], drawn["z"][2:5])
    assert torch.equal(part["augment"]["shift"], drawn["augment"]["shift"][2:5])
    assert torch.equal(part["augment"]["coin"], drawn["augment"]["coin"])
    assert torch.equal(part["table"], drawn["table"])
    assert drawn["z"].shape == (8, 16)


def test_shares_of_ranks_make_up_the_whole_batch():
    drawn = make()
    shares = [dict(leaves(take(drawn, SPEC, slice(start, start + 2)))) for start in range(0, 8, 2)]
    for name, value in leaves(drawn):
        if name != "augment.coin":
            assert torch.equal(torch.cat([share[name] for share in shares]), value)


def test_take_twice_is_a_share_of_a_share():
    drawn = make()
    twice = take(take(drawn, SPEC, slice(4, 8)), SPEC, slice(1, 3))
    assert same(twice, take(drawn, SPEC, slice(5, 7)))


ONE = {"z": Draw("normal", (1, 16)), "noise": {"first": Draw("normal", (1, 4, 1))}}


def test_an_image_depends_on_its_seed_alone():
    together = for_seeds(ONE, [7, 3, 100], CPU)
    assert together["z"].shape == (3, 16)
    assert together["noise"]["first"].shape == (3, 4, 1)
    for row, seed in enumerate([7, 3, 100]):
        assert same(take(together, ONE, slice(row, row + 1)), for_seeds(ONE, [seed], CPU))


def test_seeds_differ_and_may_repeat():
    drawn = for_seeds(ONE, [0, 1, 0], CPU)["z"]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_seeds_are_apart_from_training_draws():
    assert not torch.equal(
        for_seeds(ONE, [1], CPU)["z"], draw(ONE, seed=1, stream="D", step=0, device=CPU)["z"]
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_image_does_not_depend_on_the_device():
    there = for_seeds(ONE, [5, 6], torch.device("cuda"))
    assert there["z"].is_cuda
    assert torch.equal(there["z"].cpu(), for_seeds(ONE, [5, 6], CPU)["z"])


def test_numbers_stay_what_they_are():
    """Runs resume and pictures repeat across releases only while these hold."""
    torch.testing.assert_close(
        for_seeds({"z": Draw("normal", (1, 3))}, [0], CPU)["z"][0],
        torch.tensor([1.1049588, 1.0195147, 0.2855558]),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        draw({"u": Draw("uniform", (3,))}, seed=0, stream="D", step=0, device=CPU)["u"],
        torch.tensor([0.2498518, 0.2706438, 0.7045599]),
        rtol=0,
        atol=1e-6,
    )


# --- draws of a run, in tensors that stay ------------------------------------------------------------------


def filled(spec=SPEC, seed=1, stream="D", step=3):
    inputs = RandomInputs(spec, CPU)
    inputs.fill(seed=seed, stream=stream, step=step)
    return inputs.draws


def test_inputs_are_shaped_like_draws_and_stay_where_they_are():
    inputs = RandomInputs(SPEC, CPU)
    places = {name: value.data_ptr() for name, value in leaves(inputs.draws)}
    assert {n: (v.shape, v.dtype) for n, v in leaves(inputs.draws)} == {
        n: (v.shape, v.dtype) for n, v in leaves(make())
    }
    for step in (3, 4, 3):
        before = {name: value.clone() for name, value in leaves(inputs.draws)}
        inputs.fill(seed=1, stream="D", step=step)
        assert {name: value.data_ptr() for name, value in leaves(inputs.draws)} == places
        assert all(not torch.equal(value, before[name]) for name, value in leaves(inputs.draws))
    assert same(inputs.draws, filled())


@pytest.mark.parametrize("change", [{"seed": 2}, {"stream": "G"}, {"step": 4}])
def test_seed_stream_and_step_change_every_input(change):
    other = dict(leaves(filled(**change)))
    assert not [name for name, value in leaves(filled()) if torch.equal(value, other[name])]


def test_order_of_the_names_does_not_matter_to_inputs():
    assert same(filled({name: SPEC[name] for name in reversed(SPEC)}), filled())


def test_inputs_have_the_distributions_that_were_asked_for():
    spec = {
        "normal": Draw("normal", (20_000,)),
        "uniform": Draw("uniform", (20_000,)),
        "few": Draw("integers", (20_000,), low=-2, high=3),
        "many": Draw("integers", (20_000,), low=10, high=14),
    }
    found = filled(spec)
    assert abs(found["normal"].mean()) < 0.03
    assert abs(found["normal"].std() - 1) < 0.03
    assert 0 <= found["uniform"].min() < found["uniform"].max() < 1
    for name, numbers in (("few", [-2, -1, 0, 1, 2]), ("many", [10, 11, 12, 13])):
        kinds, counts = found[name].unique(return_counts=True)
        assert kinds.tolist() == numbers
        assert counts.min() > 0.9 * 20_000 / len(numbers)


def test_filling_inputs_leaves_the_global_generator_alone_and_knows_its_kinds():
    before = torch.get_rng_state()
    filled()
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(KeyError, match="gaussian"):
        RandomInputs({"z": Draw("gaussian", (4,))}, CPU)
