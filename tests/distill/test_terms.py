"""Terms in the training step: devices, views, auxiliary modules, refusals."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax import config, parallel
from mela_jax.distill.hints import Regressor, hint_loss
from mela_jax.distill.relations import angle_loss, distance_loss
from mela_jax.distill.teachers import Teachers
from mela_jax.distill.terms import KINDS, Seen, check_needs, make_hard_term
from mela_jax.errors import UserError
from mela_jax.models.outputs import LAST_MAP, Outputs
from tests import tiny
from tests.test_steps import assert_close, mesh_of

AXIS = parallel.BATCH_AXIS
# Methods of configs/papers, by their weights.
METHODS: dict[str, dict[str, float]] = {
    "blkd": {"alpha": 0.5},
    "fitnet": {"alpha": 0.0, "logits": 0.01, "hint": 1.0},
    "rkd": {"alpha": 0.0, "logits": 3.0, "distance": 25.0, "angle": 50.0},
    "crkd": {"alpha": 0.5, "channel": 1000.0},
    "decoupled": {"alpha": 0.0, "decoupled": 1.0},
}


@functools.cache
def run(method: str, num_devices: int, views: int = 1, weighting: str = "none") -> Any:
    """Take two steps of a method with three classes; return metrics and states."""
    mesh = mesh_of(num_devices)
    student = tiny.network(axis_name=AXIS, num_logits=3)
    teacher = tiny.network(axis_name=AXIS, num_logits=3, channels=10)
    shapes = tiny.shapes_of(student, teacher)
    hard = tiny.hard_loss(counts=(9, 4, 27), class_weights=weighting)
    terms = tiny.distill_terms(shapes, hard=hard, **METHODS[method])
    taught_by = tiny.teachers(mesh, teacher)
    state, step = tiny.make_run(mesh, student, terms, taught_by, shapes=shapes)
    states, history = [jax.device_get(state)], []
    for number in range(2):
        batch = tiny.batch(number, classes=3, views=views)
        state, metrics = step(
            state, taught_by.frozen, parallel.shard_batch(mesh, batch)
        )
        states.append(jax.device_get(state))
        history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
    return history, states


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_on_one_device_and_on_several(
    method: str, num_devices: int
):
    """Loss, gradient and what comes of it, for terms that compare images as well."""
    (one, ours), (several, theirs) = run(method, 1), run(method, num_devices)
    for alone, together in zip(one, several, strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(together[name], value, rtol=2e-4, err_msg=name)
    for alone, together in zip(ours, theirs, strict=True):
        assert_close(together.variables, alone.variables, atol=1e-4)
        assert_close(together.aux, alone.aux, atol=1e-4)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_weights_are_divided_by_those_of_the_whole_batch(num_devices: int):
    history, states = run("blkd", num_devices, weighting="balanced_batch")
    batch = tiny.batch(0, classes=3)
    student = tiny.network(axis_name=None, num_logits=3)
    outputs, _ = student.apply(
        states[0].variables, batch["image"], train=True, mutable=["batch_stats"]
    )
    weights = (1 / np.array([9, 4, 27]))[batch["label"]]
    log_p = np.asarray(jax.nn.log_softmax(outputs.logits), np.float64)
    losses = -log_p[np.arange(len(log_p)), batch["label"]]
    expected = 0.5 * (weights * losses).sum() / weights.sum()
    assert history[0]["hard_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_sum_of_its_terms_and_the_shares_add_up():
    for method in METHODS:
        for metrics in run(method, 1)[0]:
            terms = {"hard", "soft", *KINDS} & {
                name.removesuffix("_loss") for name in metrics
            }
            total = sum(metrics[f"{name}_loss"] for name in terms)
            assert metrics["loss"] == pytest.approx(total, rel=1e-5)
            shares = [metrics[f"{name}_gradient_share"] for name in terms]
            assert sum(shares) == pytest.approx(1, rel=1e-5)


def test_the_terms_of_a_method_are_their_losses_times_their_weights():
    """From the networks' own answers, without devices or gradients."""
    batch = tiny.batch(0, classes=3)
    teacher = tiny.network(axis_name=None, num_logits=3, channels=10)
    theirs = teacher.apply(tiny.initial(teacher, seed=11), batch["image"], train=False)
    for method in ("fitnet", "rkd"):
        history, states = run(method, 1)
        student = tiny.network(axis_name=None, num_logits=3)
        ours, _ = student.apply(
            states[0].variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        if method == "rkd":
            expected = {
                "distance": 25 * distance_loss(ours.features, theirs.features),
                "angle": 50 * angle_loss(ours.features, theirs.features),
            }
        else:
            regressed, _ = Regressor(10).apply(
                states[0].aux["hint"],
                ours.maps[LAST_MAP],
                train=True,
                mutable=["batch_stats"],
            )
            expected = {"hint": hint_loss(regressed, theirs.maps[LAST_MAP]).mean()}
        for name, value in expected.items():
            assert history[0][f"{name}_loss"] == pytest.approx(float(value), rel=1e-4)


def test_the_gradient_is_that_of_the_whole_objective():
    """Against plain automatic differentiation of the sum, by the head and the body."""
    batch = tiny.batch(0, classes=3)
    student = tiny.network(axis_name=None, num_logits=3)
    teacher = tiny.network(axis_name=None, num_logits=3, channels=10)
    answers = teacher.apply(tiny.initial(teacher, seed=11), batch["image"], train=False)
    history, states = run("rkd", 1)
    terms = tiny.distill_terms(
        tiny.shapes_of(student, teacher),
        hard=tiny.hard_loss(counts=(9, 4, 27)),
        **METHODS["rkd"],
    )

    def objective(params: Any) -> jax.Array:
        outputs, _ = student.apply(
            {**states[0].variables, "params": params},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        seen = Seen(outputs, (answers,), batch)
        return sum(term.weight * term.loss(seen, None).mean() for term in terms)

    gradient = jax.grad(objective)(states[0].variables["params"])
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    assert history[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


# Auxiliary modules


def test_the_regressor_is_trained_and_is_no_part_of_the_model():
    _, states = run("fitnet", 1)
    assert states[0].aux.keys() == {"hint"}
    before, after = (states[i].aux["hint"]["params"] for i in (0, -1))
    assert_differs(before["conv"]["kernel"], after["conv"]["kernel"])
    assert_differs(before["bn"], after["bn"])
    # Batch norm takes a bias away again.
    np.testing.assert_array_equal(after["conv"]["bias"], 0.0)
    assert_differs(
        states[0].aux["hint"]["batch_stats"], states[-1].aux["hint"]["batch_stats"]
    )
    model = tiny.initial(tiny.network(axis_name=AXIS, num_logits=3), seed=0)
    assert jax.tree.structure(states[-1].variables) == jax.tree.structure(model)


def assert_differs(left: Any, right: Any) -> None:
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    assert changed and all(changed)


def test_the_published_regressor_has_its_parameters():
    """A 1x1 convolution 1280 -> 2048 with bias, and batch norm."""
    shapes = jax.eval_shape(
        lambda: Regressor(2048).init(
            jax.random.key(0), jnp.zeros((1, 7, 7, 1280)), train=False
        )
    )
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert params == 1280 * 2048 + 2048 + 2 * 2048 == 2_627_584


def test_a_hint_of_equal_maps_costs_nothing():
    maps = jnp.asarray(np.random.default_rng(0).uniform(0, 3, (4, 3, 3, 8)))
    np.testing.assert_array_equal(hint_loss(maps, maps), 0.0)
    assert hint_loss(maps, maps + 2.0) == pytest.approx([4.0] * 4)
    with pytest.raises(ValueError):
        hint_loss(maps, maps[:, :2])


# Views


def test_labels_are_learnt_on_the_upright_views_and_soft_targets_on_all():
    history, states = run("blkd", 1, views=4)
    batch = tiny.batch(0, classes=3, views=4)
    student = tiny.network(axis_name=None, num_logits=3)
    outputs, _ = student.apply(
        states[0].variables, batch["image"], train=True, mutable=["batch_stats"]
    )
    log_p = np.asarray(jax.nn.log_softmax(outputs.logits[::4]), np.float64)
    expected = -0.5 * log_p[np.arange(len(log_p)), batch["label"]].mean()
    assert history[0]["hard_loss"] == pytest.approx(expected, rel=1e-5)
    several, _ = run("blkd", 4, views=4)
    for name, value in history[0].items():
        np.testing.assert_allclose(several[0][name], value, rtol=2e-4, err_msg=name)


# Kept logits, and several teachers


def test_kept_logits_teach_as_the_teacher_itself_does():
    mesh = mesh_of(2)
    student = tiny.network(axis_name=AXIS, num_logits=3)
    teacher = tiny.network(axis_name=AXIS, num_logits=3)
    batch = tiny.batch(0, classes=3)
    live = tiny.teachers(mesh, teacher)
    logits = teacher.apply(
        tiny.initial(teacher, seed=11), batch["image"], train=False
    ).logits
    # As if the batch were images 3 to 18 in their second view.
    table = np.full((2, 30, 3), np.nan, np.float32)
    table[1, 3:19] = logits
    kept = Teachers([dataclasses.replace(live.members[0], kept=table)])
    named = batch | {"index": np.arange(3, 19), "view": np.ones(16, np.int32)}
    found = []
    for taught_by in (live, kept):
        terms = tiny.distill_terms(tiny.shapes_of(student, teacher))
        state, step = tiny.make_run(mesh, student, terms, taught_by)
        inputs = parallel.shard_batch(mesh, taught_by.inputs(named))
        assert not {"index", "view"} & inputs.keys()
        found.append(jax.device_get(step(state, taught_by.frozen, inputs)[1]))
    assert kept.frozen == ({},)
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)


def test_two_teachers_teach_as_the_one_that_says_their_mean():
    mesh = mesh_of(1)
    student = tiny.network(axis_name=AXIS)
    pair = tiny.network(axis_name=AXIS), tiny.network(axis_name=AXIS)
    alone, both = tiny.teachers(mesh, pair[0]), tiny.teachers(mesh, *pair)
    twice = Teachers([alone.members[0]] * 2)
    batch = parallel.shard_batch(mesh, tiny.batch(0))
    losses = []
    for taught_by, networks in ((alone, pair[:1]), (twice, pair), (both, pair)):
        terms = tiny.distill_terms(tiny.shapes_of(student, *networks))
        state, step = tiny.make_run(mesh, student, terms, taught_by)
        losses.append(float(step(state, taught_by.frozen, batch)[1]["soft_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)


# What is refused


def test_maps_of_another_size_are_refused_as_hints():
    student, teacher = tiny.network(axis_name=None), tiny.network(axis_name=None)
    shapes = tiny.shapes_of(student, teacher)
    wide = shapes.teachers[0]._replace(
        maps={LAST_MAP: jax.ShapeDtypeStruct((1, 5, 5, 6), jnp.float32)}
    )
    with pytest.raises(UserError, match="4 x 4 .* 5 x 5"):
        tiny.distill_terms(shapes._replace(teachers=(wide,)), hint=1.0)


def test_gates_of_networks_that_have_none_are_refused():
    network = tiny.network(axis_name=None)
    shapes = tiny.shapes_of(network, network)
    with pytest.raises(UserError, match="the student has none"):
        tiny.distill_terms(shapes, attention=1.0)
    gate = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    with_gate = shapes.student._replace(maps={**shapes.student.maps, "attention": gate})
    with pytest.raises(UserError, match=r"attention needs\s+attention of its teacher"):
        tiny.distill_terms(shapes._replace(student=with_gate), attention=1.0)


def test_one_logit_has_no_others_to_tell_apart():
    network = tiny.network(axis_name=None)
    with pytest.raises(UserError, match="labels=ham7"):
        tiny.distill_terms(tiny.shapes_of(network, network), decoupled=1.0)


def test_a_term_that_no_teacher_can_meet_is_refused_by_its_name():
    term = dataclasses.replace(
        make_hard_term(tiny.hard_loss()),
        name="attention",
        needs=frozenset({"attention"}),
    )
    outputs = Outputs(None, None, {LAST_MAP: None})
    with pytest.raises(UserError, match="attention"):
        check_needs([term], [outputs])
    check_needs([term], [Outputs(None, None, {"attention": None})])


def test_without_a_teacher_labels_are_all_there_is():
    shapes = tiny.shapes_of(tiny.network(axis_name=None))
    terms = tiny.distill_terms(shapes, alpha=0.7, hint=1.0, distance=1.0, angle=1.0)
    assert [(term.name, term.weight) for term in terms] == [("hard", 1.0)]


def test_a_kind_of_weight_0_is_left_out():
    network = tiny.network(axis_name=None)
    shapes = tiny.shapes_of(network, network)
    names = [t.name for t in tiny.distill_terms(shapes, angle=2.0)]
    assert names == ["hard", "soft", "angle"]


def test_every_kind_has_its_weight_in_the_configuration():
    assert set(config.default().distill.weights) == {"logits", *KINDS}
