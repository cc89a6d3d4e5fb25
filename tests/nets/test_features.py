"""The last feature map of each network (nets/features.py): found, at the input's size, with its graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gossipseg.algos.base import Losses, Outputs, StepContext
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.params import GcmlParams
from gossipseg.errors import ConfigError
from gossipseg.learn.engine.build import check_features
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.train_step import make_learner, show, train_step
from gossipseg.learn.params import DeviceParams, TrainingParams
from gossipseg.nets import registry
from gossipseg.nets.features import at_input_size, head_of, tapped
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.segmenter import Segmenter

TRAINED = ["sanet", "unet", "dynunet", "segresnet", "swinunetr", "dca_unet"]
ADAPTED = ["adapted_unetr", "adapted_swinunetr", "adapted_sam"]


def network(name: str, dims: int = 2, **changes: object) -> Segmenter:
    params = replace(NetworkParams(name=name, width=12, dropout=0.5), **changes)
    return registry.build(params, spatial_dims=dims, in_channels=1, out_channels=3, patch_size=(64,) * dims)


@pytest.mark.parametrize("name", [*TRAINED, *ADAPTED])
def test_the_logits_are_made_of_it(name: str) -> None:
    """Of an input of a size off the stride, too; and nothing is left behind."""
    model = network(name).eval()
    image = torch.randn(1, 1, 70, 65) if name in TRAINED else torch.randn(1, 1, 64, 64)
    with torch.no_grad(), tapped(model) as maps:
        output = model(image)
    (features,) = maps
    assert features.shape[1] >= 12
    found = at_input_size(model, features, image.shape[2:])
    assert found.shape[2:] == output.logits.shape[2:] == image.shape[2:]
    head = head_of(model)
    assert head is not None
    with torch.no_grad():
        again = head(features)
    assert len(maps) == 1, "what was left behind would have gathered this pass, too"
    window = tuple(slice(0, n) for n in image.shape[2:])
    assert torch.allclose(again[(..., *window)], output.logits, atol=1e-5)


def test_a_coarser_map_lies_on_the_voxels_that_it_is_of() -> None:
    model = network("unet")
    coarse = torch.arange(4.0).reshape(1, 1, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    found = at_input_size(model, coarse, (64, 50))
    assert found.shape == (1, 1, 64, 50)
    assert found[0, 0, 0, 0] == 0 and found[0, 0, 31, 31] == 0 and found[0, 0, 32, 32] == 3


def outputs_of(name: str) -> Outputs:
    """What the losses of a step see, of which the partner's dropout is off."""
    seen: list[Outputs] = []

    class Spy(Gcml):
        def losses(self, outputs, target, context):  # type: ignore[no-untyped-def]
            seen.append(outputs["local"])
            return Losses({"local": outputs["local"].logits.mean()}, {})

    compute = choose_compute(DeviceParams(device="cpu"))
    training = TrainingParams()
    learner = make_learner(network(name), training, compute)
    other = make_learner(network(name), training, compute)
    image, target = torch.randn(2, 1, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.long)
    context = StepContext("softmax", 1, lambda o, y: o.logits.mean())
    algorithm = Spy(GcmlParams(contrast="features"))
    both = {"local": learner, "personal": other}
    with torch.no_grad():
        expected = show(learner.model, image, compute, features=True).features
    with pytest.raises(KeyError, match="personal"):  # the spy has no loss of the other one
        train_step(both, image, target, algorithm, context, compute, 1.0, features=True)  # type: ignore[arg-type]
    (found,) = seen
    assert found.clean_features is not None and expected is not None
    if name == "sanet":  # instance norm: evaluation sees what training does, but for dropout
        assert torch.allclose(found.clean_features, expected, atol=1e-5)
    return found


@pytest.mark.parametrize("name", ["sanet", "unet", "segresnet"])
def test_a_step_shows_features_with_and_without_dropout(name: str) -> None:
    """Dropout before the head alone, within the network, and at its beginning."""
    found = outputs_of(name)
    assert found.features is not None and found.features.requires_grad
    assert found.clean_features is not None and not found.clean_features.requires_grad
    assert found.features.shape == found.clean_features.shape
    assert not torch.equal(found.features, found.clean_features)


def test_nothing_is_tapped_where_nobody_asks() -> None:
    compute = choose_compute(DeviceParams(device="cpu"))
    assert show(network("sanet"), torch.randn(1, 1, 64, 64), compute).features is None


def test_two_networks_whose_features_cannot_be_compared_are_refused() -> None:
    check_features(network("sanet"), network("sanet"))
    with pytest.raises(ConfigError, match="has another network") as caught:
        check_features(network("sanet"), network("sanet", width=8))
    assert (caught.value.key, caught.value.value) == ("algorithm.contrast", "features")
    with pytest.raises(ConfigError, match="does not say which of its layers is its `head`"):
        check_features(Segmenter(nn.Conv2d(1, 2, 1), (1, 1)), network("sanet"))
