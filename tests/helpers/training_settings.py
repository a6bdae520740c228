"""The losses, penalties and augmentations of each kind of preset, for small networks of its families."""

PRESETS = {
    "transgan-s": (
        *("transgan", "transgan", "objective.n_critic=2", "generator.locality=neighbourhood"),
        *(
            "augment.policy=[translation,cutout,color]",
            "training.micro_batch=2",
            "training.generator_batch=4",
        ),
        # closed, wider, open
        "training.attention_window={steps: [[0.008, 2], [0.012, 3]], of_kimg: 0.02}",
        "generator.super_resolution=true",
    ),
    "transgan-tiny": (
        *("transgan", "transgan", "objective.loss=relativistic", "objective.gradient_penalty=null"),
        *("objective.r1={gamma: 0.1, every: 2}", "objective.r2={gamma: 0.1, every: 2}"),
        *("optimizer.warmup_kimg=0.016", "optimizer.decay_from=0.5", "training.precision=bf16"),
    ),
    "transgan2-cifar10": (
        *("transgan2", "transgan2", "training.penalty_micro_batch=2", "objective.n_critic=2"),
        "augment.policy=[translation,erase_ratio,color,hue,filter]",
        *("optimizer.discriminator.clip_norm=5", "generator.noise=true", "discriminator.noise=true"),
    ),
    "vitgan-cifar10": (
        *("vitgan", "vitgan", "objective.loss=non-saturating", "objective.gradient_penalty=null"),
        *("objective.consistency={real: 10, fake: 10}", "augment.policy=[translation,color,cutout,flip]"),
        *("augment.chances={contrast: 0.8, cutout: 0.5}", "ema={kind: half-life, half_life_kimg: 0.1}"),
    ),
    "vitgan-stylegan2d-cifar10": (
        *("vitgan", "stylegan2", "objective.loss=non-saturating", "objective.gradient_penalty=null"),
        *("objective.r1={gamma: 0.4, every: 1}", "discriminator.group_size=4"),
    ),
    "stylegan2-ffhq": (
        *("stylegan2", "stylegan2", "objective.loss=non-saturating", "objective.gradient_penalty=null"),
        *("objective.first=generator", "objective.w_average=every_pass", "objective.style_mixing=0.9"),
        *("objective.r1={gamma: 10, every: 2}", "objective.path_length={weight: 2, every: 2}"),
        *("optimizer.generator.lazy_every=4", "training.micro_batch=2", "generator.noise=true"),
    ),
    "ganformer-ffhq": (
        *("ganformer", "ganformer", "objective.loss=non-saturating", "objective.gradient_penalty=null"),
        *("generator.attention=duplex", "objective.path_length={weight: 2, every: 2}"),
        *(
            "objective.style_mixing=0.9",
            "objective.component_mixing=0.5",
            "objective.r1={gamma: 10, every: 2}",
        ),
        "generator.attention_dropout=0.1",
    ),
    "ganformer-tiny": (
        *("ganformer", "dcgan", "objective.loss=relativistic", "objective.gradient_penalty=null"),
        *("objective.r1={gamma: 0.1, every: 2}", "generator.attention=simplex", "training.recompute=true"),
    ),
}
