"A recipe that trains in a second, and images with names that a page has to escape."

import torch
from recipes_for_tests import TINY

from cfvae.data import ImageDataset, Shapes
from cfvae.recipes import Recipe, change
from cfvae.runs.presets import preset

STRANGE = ("<script>alert(1)</script>", "cats & dogs", 'it\'s "quoted"')


def tiny(**settings) -> Recipe:
    return change(preset("shapes-demo"), {**TINY, "held_out": 24, **settings})


def strange_images() -> ImageDataset:
    shapes = Shapes(60, seed=2, size=16)
    return ImageDataset(shapes.images, torch.arange(60) % 3, STRANGE, "<i>mine</i>")
