"""Walks: timing, frames, and that the frame of a seed equals its image."""

import pytest
import torch
from helpers.styled_networks import SECTIONS, styled

from gantx import models
from gantx.config import presets
from gantx.errors import UsageError
from gantx.generation import interpolation, sampling
from gantx.generation.interpolation import Point, Sweep, Walk
from gantx.generation.truncation import Truncation
from gantx.runtime.seeds import Seeds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transgan():
    torch.manual_seed(0)
    return models.build(presets.load("transgan-tiny").generator).eval()


def frames_of(generator, walk, batch=16):
    return torch.stack(list(interpolation.generate(generator, walk, batch=batch, device=CPU)))


def samples(generator, seeds, truncation=None):
    images = sampling.sample(generator, list(seeds), batch=8, device=CPU, truncation=truncation)
    return torch.cat(list(images))


def test_the_timing_of_a_walk():
    walk = Walk(((1, 5, 9),), 7)
    assert walk.keys() == [0, 3, 6]
    assert [(point.start, point.end) for point in walk.points()] == [(1, 5)] * 3 + [(5, 9)] * 3 + [(9, 9)]
    weights = [point.weight for point in walk.points()]
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 0, 1 / 3, 2 / 3, 0])
    assert Walk(((1, 5, 9),), 61, loop=True).keys() == [0, 20, 40, 60]


def test_a_loop_ends_where_it_began():
    points = list(Walk(((1, 5), (2, 6)), 5, loop=True).points())
    assert points[:2] == [Point(1, 5, 0.0, 1.0), Point(2, 6, 0.0, 1.0)]
    assert points[-2:] == [Point(1, 1, 0.0, 1.0), Point(2, 2, 0.0, 1.0)]
    assert points[4:6] == [Point(5, 1, 0.0, 1.0), Point(6, 2, 0.0, 1.0)]


def test_smooth_easing_rests_at_the_seeds():
    weights = [point.weight for point in Walk(((0, 1),), 11, easing="smooth").points()][:-1]
    steps = torch.tensor(weights).diff()
    assert steps[0] < 0.5 * steps[4]
    assert (steps > 0).all()


def test_truncation_sweeps_along_the_walk_and_back_in_a_loop():
    there = Walk(((3,),), 5, truncation=Sweep(0.0, 1.0))
    assert [point.psi for point in there.points()] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    back = Walk(((3,),), 5, loop=True, truncation=Sweep(-1.0, 1.0))
    assert [point.psi for point in back.points()] == pytest.approx([-1, 0, 1, 0, -1])


def test_arcs_keep_the_length_of_gaussian_vectors_and_begin_and_end_exactly():
    first, second = torch.randn(2, 4, 3, 500)
    for place in (0.0, 0.25, 0.5, 1.0):
        between = interpolation.slerp(first, second, torch.full((4,), place))
        lengths = between.flatten(1).norm(dim=1) / 1500**0.5
        assert (lengths - 1).abs().max() < 0.1
    assert torch.equal(interpolation.slerp(first, second, torch.zeros(4)), first)
    assert torch.equal(interpolation.slerp(first, second, torch.ones(4)), second)
    middle = interpolation.slerp(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]]), torch.tensor([0.5]))
    torch.testing.assert_close(middle, torch.full((1, 2), 0.5**0.5))
    same = interpolation.slerp(first, first, torch.full((4,), 0.3))
    torch.testing.assert_close(same, first)


def test_frames_at_the_seeds_are_their_images_and_others_lie_between(transgan):
    walk = interpolation.plan(transgan, [1, 5, 9], 13, loop=True)
    frames = frames_of(transgan, walk)
    assert frames.shape == (13, 1, 3, 32, 32)
    assert torch.equal(frames[walk.keys()][:, 0], samples(transgan, [1, 5, 9, 1]))
    assert len({frame.numpy().tobytes() for frame in frames}) == 12  # the last is the first
    steps = frames.float().diff(dim=0).abs().mean((1, 2, 3, 4))
    jump = (frames[4].float() - frames[0].float()).abs().mean()
    assert steps[:4].max() < jump


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("family", SECTIONS)
def test_in_both_spaces_and_truncated_the_frame_of_a_seed_is_its_image(family, space):
    generator = styled(family)
    for truncation in (None, Sweep(0.6, 0.6), Sweep(0.6, 0.6, 1)):
        walk = interpolation.plan(generator, [4, 7, 2], 9, space=space, truncation=truncation)
        frames = frames_of(generator, walk)
        drawn = truncation and Truncation(truncation.first, truncation.cutoff)
        assert torch.equal(frames[walk.keys()][:, 0], samples(generator, [4, 7, 2], drawn))


def test_the_batch_changes_no_frame():
    generator = styled("ganformer")
    walk = interpolation.plan(generator, range(6), 11, paths=2, loop=True, truncation=Sweep(0.2, 0.9))
    assert walk.space == "w"
    expected = frames_of(generator, walk, batch=64)
    assert expected.shape == (11, 2, 3, 16, 16)
    for batch in (1, 5):
        assert torch.equal(frames_of(generator, walk, batch), expected)


def test_arcs_and_lines_differ_between_the_seeds():
    generator = styled("stylegan2")
    arcs, lines = (
        frames_of(generator, interpolation.plan(generator, [0, 1], 3, space=space)) for space in ("z", "w")
    )
    assert torch.equal(arcs[[0, 2]], lines[[0, 2]])
    assert not torch.equal(arcs[1], lines[1])


def test_a_sweep_from_the_average_to_the_seed():
    generator = styled("vitgan")
    walk = interpolation.plan(generator, [3], 4, truncation=Sweep(0.0, 1.0))
    frames = frames_of(generator, walk)[:, 0]
    assert torch.equal(frames[-1], samples(generator, [3])[0])
    assert torch.equal(frames[0], samples(generator, [3], Truncation(0.0))[0])


@pytest.mark.parametrize("family", ["transgan", *SECTIONS])
def test_a_walk_through_classes_passes_the_images_of_the_classes(family):
    torch.manual_seed(0)
    section = presets.load("transgan-tiny").generator if family == "transgan" else SECTIONS[family]
    generator = models.build(section.model_copy(update={"classes": 3})).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    walk = interpolation.plan(generator, [4], 5, classes=[2, 0])
    frames = frames_of(generator, walk)[:, 0]
    for frame, label in ((0, 2), (4, 0)):
        (image,) = sampling.sample(generator, [4], batch=8, device=CPU, labels=[label])
        assert torch.equal(frames[frame], image[0])
    assert len({frame.numpy().tobytes() for frame in frames}) == 5


def test_classes_and_seeds_have_a_pace_of_their_own():
    walk = Walk(((1, 5),), 5, loop=True, classes=(7, 8, 9))
    points = list(walk.points())
    assert [(point.start, point.end) for point in points] == [(1, 5), (1, 5), (5, 1), (5, 1), (1, 1)]
    assert [point.classes for point in points] == [
        (7, 8, 0.0),
        (8, 9, 0.0),
        (8, 9, 0.5),
        (9, 7, 0.0),
        (7, 7, 0.0),
    ]
    assert walk.text()["gantx:classes"] == "7,8,9"
    assert walk.captions("class {}".format)[1:4] == [["class 8"], ["seed 5"], ["class 9"]]
    within = Walk(((1, 5),), 3, classes=(7,))
    assert [point.classes for point in within.points()] == [(7, 7, 0.0)] * 3
    assert within.captions() == Walk(((1, 5),), 3).captions()


def test_a_walk_of_any_length_is_planned_and_generated_in_constant_memory(transgan):
    """A walk of a million frames yields its first at once: nothing grows with the length."""
    walk = interpolation.plan(transgan, range(40), 1_000_000)
    frames = interpolation.generate(transgan, walk, batch=8, device=CPU)
    assert torch.equal(next(frames)[0], samples(transgan, [0])[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": [1, 2, 3], "frames": 2}, "at least 3"),
        ({"seeds": [1, 2, 3], "frames": 3, "loop": True}, "at least 4"),
        ({"seeds": [1, 2, 3], "frames": 9, "paths": 2}, "multiple of 2"),
        ({"seeds": [1, 2], "frames": 2, "classes": [0, 1, 2]}, "cannot pass 3 classes"),
        ({"seeds": [], "frames": 9}, "at least one seed"),
        ({"seeds": [1, 2], "frames": 9, "paths": 0}, "paths 0: give a whole number, 1 or more"),
        ({"seeds": [1, 2], "frames": 9, "paths": -2}, "paths -2"),
        ({"seeds": [1, 2], "frames": 9, "paths": 2.0}, "paths 2.0"),
        ({"seeds": [1, 2], "frames": 2.5}, "frames 2.5"),
        ({"seeds": [1, 2], "frames": -5}, "frames -5"),
        ({"seeds": [1, 2.5], "frames": 9}, "seed 2.5"),
        ({"seeds": [-1, 2], "frames": 9}, "seed -1"),
        ({"seeds": [1], "frames": 9, "space": "w"}, "needs a network with styles"),
        ({"seeds": [1], "frames": 9, "truncation": Sweep(0, 1)}, "needs a network with styles"),
        ({"seeds": [1], "frames": 9, "space": "x"}, "use z or w"),
        ({"seeds": [1], "frames": 9, "easing": "x"}, "linear or smooth"),
        ({"seeds": Seeds([range(10**10)]), "frames": 9}, "9 frames cannot pass 10000000000 seeds"),
    ],
)
def test_what_cannot_be_walked_is_explained(transgan, arguments, words):
    with pytest.raises(UsageError, match=words):
        interpolation.plan(transgan, **arguments)


def test_walks_side_by_side_are_of_one_length():
    with pytest.raises(UsageError, match="the same number of seeds"):
        Walk(((1, 2), (3,)), 9)


def test_sweeps_are_read():
    assert interpolation.parse_sweep(None) is None
    assert interpolation.parse_sweep("0.7") == Sweep(0.7, 0.7)
    assert interpolation.parse_sweep("-1:1", 4) == Sweep(-1.0, 1.0, 4)
    for text in ("", "a:1", "1:2:3", "nan"):
        with pytest.raises(UsageError, match="truncation"):
            interpolation.parse_sweep(text)
