"""DenseNet161 and ViT-B/16 give the numbers of torchvision, where that is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mela_jax.models.cost import count_params
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import create_model
from tests.models.networks import assert_same, blank_with_head, jit_apply, noise

# By torchvision's own tables, with their heads of 1000 classes.
PUBLISHED = {"densenet161": 28_681_000, "vit_b16": 86_567_656}
SIZES = {"densenet161": (64, 75), "vit_b16": (224,)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    model = create_model(name, num_logits=1000)
    variables = blank_with_head(model, size=224)
    assert count_params(variables["params"]) == PUBLISHED[name]


@pytest.fixture(scope="module")
def frameworks() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="it is not installed")
    return torch, torchvision


def randomise(network: Any, torch: Any) -> None:
    """Fill a network's parameters and statistics."""
    torch.manual_seed(3)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            value.normal_(0.0, 0.3)
        elif value.dtype == torch.float32 and value.ndim > 1 and "embed" not in name:
            value.normal_(0.0, float(np.prod(value.shape[1:])) ** -0.5)
        elif value.dtype == torch.float32:
            is_scale = value.ndim == 1 and name.endswith("weight")
            value.uniform_(0.6, 1.4) if is_scale else value.normal_(0.0, 0.3)


def save(state: Mapping[str, Any], file: Path) -> None:
    np.savez(file, **{name: value.numpy() for name, value in state.items()})


@pytest.mark.parametrize("name", PUBLISHED)
def test_maps_and_logits(name, frameworks, tmp_path):
    torch, torchvision = frameworks
    network = getattr(torchvision.models, name.replace("_b16", "_b_16"))().eval()
    randomise(network, torch)
    file = tmp_path / "state.npz"
    save(network.state_dict(), file)
    model = create_model(name, num_logits=3)
    blank = blank_with_head(model, size=SIZES[name][0])
    variables = load_pretrained(name, blank, init=file)
    apply = jit_apply(model)
    head = blank["params"]["head"]["logits"]
    for size in SIZES[name]:
        images = noise(size, num=2)
        expected = features_of(name, network, images, torch)
        outputs = apply(variables, images)
        assert_same(outputs.maps["last"], expected)
        pooled = expected.mean(axis=(1, 2))
        assert_same(outputs.features, pooled)
        assert_same(outputs.logits, pooled @ head["kernel"] + head["bias"])


def features_of(name: str, network: Any, images: np.ndarray, torch: Any) -> np.ndarray:
    """Return torchvision's last map, [B, h, w, C]."""
    means, deviations = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    scaled = ((images / 255 - means) / deviations).astype(np.float32)
    given = torch.from_numpy(scaled.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if name == "vit_b16":
            network.heads = torch.nn.Identity()
            return network(given).numpy()[:, None, None]
        # A ReLU stands outside the module of the features.
        return torch.relu(network.features(given)).permute(0, 2, 3, 1).numpy()
