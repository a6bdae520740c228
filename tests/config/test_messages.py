"""What is said of a wrong key or value of a configuration."""

import pytest

from gantx.config.presets import load
from gantx.errors import UsageError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.kimg=.inf", "finite"),
        ("paper={title: x}", "paper.arxiv is missing"),
        ("training=", "training cannot be null: it is a section with the keys kimg, batch"),
        ("batch=3", "unknown key 'batch' (did you mean training.batch?)"),
        ("lr=3", "did you mean optimizer.generator.lr or optimizer.discriminator.lr?"),
        ("optimizer.lr=3", "did you mean optimizer.generator.lr or"),
        ("patch_size=4", "did you mean generator.patch_size or discriminator.patch_size?"),
        ("training.bach=3", "unknown key 'training.bach' (did you mean 'batch'?)"),
        ("training.threads=0", "training.threads cannot be '0': use 'auto', or 1 or more"),
        ("training.threads=x", "training.threads cannot be 'x': use 'auto', or a whole number"),
        ("training.micro_batch=1.5", "use 'auto', or a whole number"),
        ("augment.policy=color", "augment.policy cannot be 'color': it is a list, such as [color]"),
        ("augment.policy={a: 1}", "it is a list"),
        ("optimizer.generator.lr=null", "optimizer.generator.lr cannot be null"),
    ],
)
def test_it_says_what_would_be_right(override, words):
    with pytest.raises(UsageError) as problem:
        load("vitgan-tiny", overrides=[override])
    assert words in str(problem.value)
