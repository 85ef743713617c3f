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
        ("mobilenet_v2", 2_257_984, 300e6),
        ("densenet121", 7_037_504, 2.83e9),
        ("vgg16", 14_714_688, 15.35e9),
        ("vit_b16", 85_798_656, 17.56e9),
        ("convnext_base", 87_566_464, 15.36e9),
        # Not published; by the layers.
        ("tiny_student", 343_616, 175e6),
        ("three_block", 244_448, 1.76e9),
    ],
)
def test_published_sizes(name, body_params, multiply_adds):
    model = create_model(name)
    variables = blank_variables(model, size=224)
    width = variables["params"]["head"]["logits"]["kernel"].shape[0]
    assert count_params(variables) == body_params + width + 1
    flops = count_flops(model, variables, image_size=224)
    assert flops == pytest.approx(2 * multiply_adds, rel=0.025)


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        # With their heads, as the papers and their code count them; those of Nazari &
        # Garcia and of KD-lesions without statistics.
        ("dsnet", {"num_logits": 2, "pool": "flatten"}, 268_898),
        ("dsnet", {"pool": "flatten"}, 182_369),
        ("three_block", {"pool": "max"}, 244_561),
        ("tiny_student", {}, 343_833),
        ("tiny_student", {"num_logits": 7}, 345_135),
        ("fused_islam", {"num_logits": 2}, 235_892_866),
        ("efficientnet_b3_s2", {"num_logits": 8}, 11_140_048),
        ("efficientnet_b3_s2_cbam", {"num_logits": 8}, 11_169_461),
        ("efficientnet_b3_sge", {"num_logits": 8}, 10_708_624),
        ("efficientnet_b3_spatial", {"num_logits": 8}, 10_709_116),
        ("mobilenet_v3_large_gate", {}, 2_996_352 + 123_137 + 961),
        ("efficientnet_b4_gate", {}, 17_673_816 + 229_633 + 1793),
    ],
)
def test_sizes_of_the_published_methods(name, options, params):
    variables = blank_variables(create_model(name, **options), size=224)
    trained_only = name.startswith("efficientnet_b3")
    assert count_params(variables["params"] if trained_only else variables) == params


def test_flops_follow_the_image_and_the_head():
    name = "mobilenet_v3_small"
    plain, hidden = create_model(name), create_model(name, hidden=1024)
    variables = blank_variables(plain)
    small = count_flops(plain, variables, image_size=112)
    large = count_flops(plain, variables, image_size=224)
    assert 3.5 < large / small < 4.0
    more = count_flops(hidden, blank_variables(hidden), image_size=112)
    assert more - small == 2 * (576 * 1024 + 1024 - 576)
