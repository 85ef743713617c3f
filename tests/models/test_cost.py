"""Parameters and FLOPs agree with the published ones."""

import pytest

from mela_jax.models.cost import count_flops, count_params
from mela_jax.models.zoo import create_model
from tests.models.networks import blank_variables


@pytest.mark.parametrize(
    ("name", "body_params", "multiply_adds"),
    [
        # Totals of keras.applications with include_top=False; multiply-adds at 224
        # pixels of the papers or releases, less their 1000-class heads.
        ("resnet50", 23_587_712, 3.86e9),
        ("mobilenet_v3_small", 939_120, 56e6),
        ("mobilenet_v3_large", 2_996_352, 217e6),
        ("efficientnet_lite0", 3_413_024, 385e6),
    ],
)
def test_published_sizes(name, body_params, multiply_adds):
    model = create_model(name)
    variables = blank_variables(model)
    width = variables["params"]["head"]["logits"]["kernel"].shape[0]
    assert count_params(variables) == body_params + width + 1
    flops = count_flops(model, variables, image_size=224)
    assert flops == pytest.approx(2 * multiply_adds, rel=0.025)


def test_flops_follow_the_image_and_the_head():
    name = "mobilenet_v3_small"
    plain, hidden = create_model(name), create_model(name, hidden=1024)
    variables = blank_variables(plain)
    small = count_flops(plain, variables, image_size=112)
    large = count_flops(plain, variables, image_size=224)
    assert 3.5 < large / small < 4.0
    more = count_flops(hidden, blank_variables(hidden), image_size=112)
    assert more - small == 2 * (576 * 1024 + 1024 - 576)
