"""The training step: devices, distillation, moving average, precision."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from scipy.special import expit

from mela_jax import checkpoint, optim, parallel, steps
from mela_jax.data.views import augment_batch, draw_views
from mela_jax.distill.logits import tempered_kl
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import Term
from mela_jax.models.convolution import plain_convolutions
from mela_jax.models.families.plain import Layer, PlainNet
from mela_jax.models.head import Classifier, Head
from mela_jax.models.outputs import LAST_MAP, Outputs
from mela_jax.models.zoo import create_model
from mela_jax.state import Variables, create_state
from tests import tiny
from tests.views import MILD

AXIS = parallel.BATCH_AXIS
EMA_DECAY = 0.15  # reached at the second step


def mesh_of(num_devices: int) -> Mesh:
    """Return a mesh over the first devices."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), (AXIS,), (AxisType.Auto,), devices=devices)


class SpyTeacher(nn.Module):
    """A teacher whose logits tell what it was shown, and which may not train."""

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Score an image by its mean colour."""
        assert not train, "the teacher runs in evaluation mode"
        bias = self.param("bias", nn.initializers.constant(-0.7), ())
        features = jnp.mean(image, axis=(1, 2)) / 25.0 - 5.0
        logits = features.sum(axis=-1, keepdims=True) * 3.0 + bias
        return Outputs(logits=logits, features=features, maps={LAST_MAP: image})


def spy_logits(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the spy's logits, in float64."""
    features = batch["image"].astype(np.float64).mean(axis=(1, 2)) / 25.0 - 5.0
    return features.sum(axis=-1) * 3.0 - 0.7


def student_logits(variables: Variables, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the training-mode logits of the whole batch at once, without devices."""
    outputs, _ = tiny.network(axis_name=None).apply(
        variables, batch["image"], train=True, mutable=["batch_stats"]
    )
    return np.asarray(outputs.logits[:, 0], np.float64)


@functools.cache
def trained(objective_name: str, num_devices: int) -> dict[str, Any]:
    """Train three steps with dropout; return metrics, states and device copies."""
    mesh = mesh_of(num_devices)
    student, terms = tiny.network(axis_name=AXIS, dropout=0.5), tiny.hard_terms()
    taught_by = tiny.teachers(mesh)
    if objective_name == "distill":
        teacher = tiny.network(axis_name=AXIS)
        taught_by = tiny.teachers(mesh, teacher)
        terms = tiny.distill_terms(tiny.shapes_of(student, teacher))
    frozen = taught_by.frozen
    before = checkpoint.fingerprint(frozen)
    state, train_step = tiny.make_run(
        mesh, student, terms, taught_by, ema_decay=EMA_DECAY
    )
    states, history = [jax.device_get(state)], []
    for step in range(3):
        batch = parallel.shard_batch(mesh, tiny.batch(step))
        state, metrics = train_step(state, frozen, batch)
        states.append(jax.device_get(state))
        history.append(jax.device_get(metrics))
    return {
        "states": states,
        "metrics": history,
        "on_devices": state,
        "teacher": (before, checkpoint.fingerprint(frozen)),
    }


@functools.cache
def distilled_once(alpha: float, num_devices: int = 1) -> dict[str, Any]:
    """Take one step without dropout from the spy; return metrics and states."""
    mesh = mesh_of(num_devices)
    spy, student = SpyTeacher(), tiny.network(axis_name=AXIS)
    taught_by = tiny.teachers(mesh, spy)
    terms = tiny.distill_terms(tiny.shapes_of(student, spy), alpha=alpha)
    state, train_step = tiny.make_run(mesh, student, terms, taught_by)
    before = jax.device_get(state)
    batch = parallel.shard_batch(mesh, tiny.batch(0))
    after, metrics = train_step(state, taught_by.frozen, batch)
    return {
        "before": before,
        "after": jax.device_get(after),
        "metrics": {k: float(v) for k, v in jax.device_get(metrics).items()},
    }


def assert_close(left: Any, right: Any, *, atol: float) -> None:
    """Compare two trees."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


# Devices


@pytest.mark.parametrize("objective", ["hard", "distill"])
def test_eight_devices_train_as_one_does(objective: str):
    one, eight = trained(objective, 1), trained(objective, 8)
    for ours, theirs in zip(one["metrics"], eight["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-5, err_msg=name)
    for ours, theirs in zip(one["states"], eight["states"], strict=True):
        assert_close(theirs.variables, ours.variables, atol=1e-5)
        assert_close(theirs.ema, ours.ema, atol=1e-5)
        assert theirs.step == ours.step


@pytest.mark.parametrize("objective", ["hard", "distill"])
def test_every_device_holds_the_same_state(objective: str):
    state = trained(objective, 8)["on_devices"]
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_dropout_is_at_work_and_differs_between_steps():
    model = tiny.network(axis_name=None, dropout=0.5)
    batch, variables = tiny.batch(0), trained("hard", 1)["states"][0].variables
    loss = float(trained("hard", 1)["metrics"][0]["loss"])
    losses = []
    for step in range(2):
        outputs, _ = model.apply(
            variables,
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(jax.random.key(tiny.SEED), step)},
        )
        z = np.asarray(outputs.logits[:, 0], np.float64)
        losses.append(np.logaddexp(0, np.where(batch["label"] == 1, -z, z)).mean())
    assert loss == pytest.approx(losses[0], rel=1e-5)
    assert loss != pytest.approx(losses[1], rel=1e-3)


def test_batch_statistics_are_those_of_the_whole_batch():
    before, after = trained("hard", 8)["states"][:2]
    _, updates = tiny.network(axis_name=None).apply(
        before.variables, tiny.batch(0)["image"], train=True, mutable=["batch_stats"]
    )
    assert_close(after.variables["batch_stats"], updates["batch_stats"], atol=1e-6)
    # One device's own share of the batch gives others.
    _, share = tiny.network(axis_name=None).apply(
        before.variables,
        tiny.batch(0)["image"][:2],
        train=True,
        mutable=["batch_stats"],
    )
    ours, others = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (updates["batch_stats"], share["batch_stats"])
    )
    assert np.abs(ours - others).max() > 1e-3


def test_a_network_without_batch_statistics_learns():
    mesh = mesh_of(2)
    body = PlainNet((Layer(4, 2),), lambda image: image / 255.0, norm=False)
    student = Classifier(body=body, head=Head(batch_axis_name=AXIS))
    state, train_step = tiny.make_run(mesh, student, tiny.hard_terms(), Teachers())
    assert set(state.variables) == {"params"}
    losses = []
    for _ in range(20):
        batch = parallel.shard_batch(mesh, tiny.batch(0))
        state, metrics = train_step(state, (), batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


# Distillation


def test_the_teacher_is_bit_for_bit_the_same_after_training():
    for num_devices in (1, 8):
        before, after = trained("distill", num_devices)["teacher"]
        assert before == after


def test_teacher_and_student_see_the_very_same_image():
    seen: list[Any] = []

    class Witness(nn.Module):
        """A body that tells what it was given."""

        who: str
        bn_axis_name: str | None = AXIS

        @nn.compact
        def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
            seen.append((self.who, image, train))
            return tiny.Body(bn_axis_name=AXIS)(image, train=train)

    mesh = mesh_of(1)
    teacher, student = (
        tiny.network(axis_name=AXIS).clone(body=Witness(who))
        for who in ("teacher", "student")
    )
    taught_by = tiny.teachers(mesh, teacher)
    terms = tiny.distill_terms(tiny.shapes_of(student, teacher))
    state, train_step = tiny.make_run(mesh, student, terms, taught_by)
    seen.clear()
    batch = parallel.shard_batch(mesh, tiny.batch(0))
    train_step.lower(state, taught_by.frozen, batch)
    (first, ours, ours_trains), (second, theirs, theirs_trains) = seen
    assert (first, second) == ("student", "teacher")
    # The student's is traced for its gradient, with the same array in it.
    assert getattr(ours, "primal", ours) is theirs
    assert (ours_trains, theirs_trains) == (True, False)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_losses_are_computed_from_the_batch_that_was_fed(num_devices: int):
    run = distilled_once(0.25, num_devices)
    batch = tiny.batch(0)
    z = student_logits(run["before"].variables, batch)
    soft = tempered_kl(
        z[:, None], spy_logits(batch)[:, None], temperature=tiny.TEMPERATURE
    ).mean()
    hard = np.logaddexp(0, np.where(batch["label"] == 1, -z, z)).mean()
    metrics = run["metrics"]
    # Each with its weight: what the total is made of.
    assert metrics["soft_loss"] == pytest.approx(0.25 * float(soft), rel=1e-5)
    assert metrics["hard_loss"] == pytest.approx(0.75 * hard, rel=1e-5)
    assert metrics["loss"] == pytest.approx(
        metrics["soft_loss"] + metrics["hard_loss"], rel=1e-6
    )


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_soft_share_of_the_gradient_is_that_of_the_norms(num_devices: int):
    run = distilled_once(0.25, num_devices)
    batch, t = tiny.batch(0), tiny.TEMPERATURE
    z = student_logits(run["before"].variables, batch)
    hard = 0.75 * (expit(z) - batch["label"])
    soft = 0.25 * t * (expit(z / t) - expit(spy_logits(batch) / t))
    expected = np.linalg.norm(soft) / (np.linalg.norm(soft) + np.linalg.norm(hard))
    assert 0.05 < expected < 0.95
    assert run["metrics"]["soft_gradient_share"] == pytest.approx(expected, rel=1e-4)
    shares = [run["metrics"][f"{term}_gradient_share"] for term in ("hard", "soft")]
    assert sum(shares) == pytest.approx(1, rel=1e-6)


def test_with_alpha_0_the_teacher_has_no_say():
    run = distilled_once(0.0)
    mesh = mesh_of(1)
    state, train_step = tiny.make_run(
        mesh, tiny.network(axis_name=AXIS), tiny.hard_terms()
    )
    batch = parallel.shard_batch(mesh, tiny.batch(0))
    after, metrics = train_step(state, (), batch)
    assert run["metrics"]["soft_gradient_share"] == 0.0
    assert run["metrics"]["soft_loss"] == 0.0
    assert run["metrics"]["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert_close(run["after"].variables, after.variables, atol=1e-6)


def test_with_alpha_1_the_labels_have_no_say():
    metrics = distilled_once(1.0)["metrics"]
    assert metrics["soft_gradient_share"] == 1.0
    assert metrics["hard_loss"] == 0.0


def test_where_all_gradients_vanish_the_shares_are_finite():
    nothing = Term("hard", 1.0, lambda seen, _: 0.0 * seen.student.logits[:, 0])
    terms = (nothing, Term("soft", 0.0, nothing.loss))
    state, train_step = tiny.make_run(mesh_of(1), tiny.network(axis_name=AXIS), terms)
    batch = parallel.shard_batch(mesh_of(1), tiny.batch(0))
    _, metrics = train_step(state, (), batch)
    assert metrics["soft_gradient_share"] == metrics["hard_gradient_share"] == 0.0


# Moving average, progress, precision


def test_the_moving_average_is_its_formula_over_parameters_and_statistics():
    states = trained("hard", 1)["states"]
    average = jax.tree.map(np.float64, states[0].variables)
    for n, state in enumerate(states[1:]):
        decay = min(EMA_DECAY, (1 + n) / (10 + n))
        average = jax.tree.map(
            lambda a, v, decay=decay: decay * a + (1 - decay) * np.float64(v),
            average,
            state.variables,
        )
        assert_close(state.ema, average, atol=1e-6)
        assert state.evaluated is state.ema
    assert {"params", "batch_stats"} == states[-1].ema.keys()


def test_without_a_moving_average_the_variables_are_evaluated():
    after = distilled_once(0.25)["after"]
    assert after.ema is None
    assert after.evaluated is after.variables


def test_the_loss_falls_on_an_easy_problem_and_the_eval_step_scores_it():
    mesh = mesh_of(2)
    # Bright or dark: a single weight tells.
    batch = tiny.batch(0)
    batch["image"] = batch["image"] * 0.2 + 160.0 * batch["label"][:, None, None, None]
    model = tiny.network(axis_name=AXIS)
    state, train_step = tiny.make_run(
        mesh, model, tiny.hard_terms(), learning_rate=0.05, total_steps=60
    )
    on_devices = parallel.shard_batch(mesh, batch)
    losses = []
    for _ in range(60):
        state, metrics = train_step(state, (), on_devices)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.05 * losses[0]
    assert int(state.step) == 60
    # In evaluation mode batch norm takes its running statistics, with one image alone.
    eval_step = parallel.map_eval_step(steps.make_eval_step(model), mesh)
    logits = parallel.gather(eval_step(state.variables, on_devices["image"]))
    assert logits.shape == (tiny.BATCH_SIZE, 1)
    expected = tiny.network(axis_name=None).apply(
        jax.device_get(state.variables), batch["image"], train=False
    )
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits[:, 0] > 0, batch["label"] == 1)


def test_computing_in_bfloat16_leaves_every_variable_and_the_loss_in_float32():
    mesh = mesh_of(1)
    model = tiny.network(axis_name=AXIS, dtype=jnp.bfloat16)
    state, train_step = tiny.make_run(mesh, model, tiny.hard_terms(), ema_decay=0.9)
    before = jax.device_get(state)
    after, metrics = train_step(state, (), parallel.shard_batch(mesh, tiny.batch(0)))
    for tree in (after.variables, after.ema, metrics):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}
    # It did compute in bfloat16: near the float32 loss, and not the same.
    exact = student_logits(before.variables, tiny.batch(0))
    labels = tiny.batch(0)["label"]
    expected = np.logaddexp(0, np.where(labels == 1, -exact, exact)).mean()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=2e-2)
    assert float(metrics["loss"]) != pytest.approx(expected, rel=1e-6)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the operations of a program and of the functions it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def operand_dtypes(program: Any, operation: str) -> list[str]:
    """Return the dtype of the first operand of each such operation of a program."""
    return [
        str(equation.invars[0].aval.dtype)
        for equation in equations(program.jaxpr)
        if equation.primitive.name == operation
    ]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small"])
def test_in_bfloat16_statistics_are_float32_and_convolutions_are_not(name: str):
    """In the program that a GPU gets, of a forward pass in training mode."""
    image = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    model = create_model(name, dtype=jnp.bfloat16)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), image
    )

    def forward(variables: Variables, image: jax.Array) -> Any:
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    with plain_convolutions():
        program = jax.make_jaxpr(forward)(variables, image)
        outputs, updates = jax.eval_shape(forward, variables, image)
    # Sums over pixels and images: batch norm's mean and mean square, squeeze-excite's
    # means, the head's pooling.
    sums = operand_dtypes(program, "reduce_sum")
    num_norms = len(jax.tree.leaves(updates)) // 2
    assert len(sums) >= 2 * num_norms > 60
    assert set(sums) == {"float32"}
    convolutions = operand_dtypes(program, "conv_general_dilated")
    assert len(convolutions) >= num_norms
    assert set(convolutions) == {"bfloat16"}
    # The head.
    assert operand_dtypes(program, "dot_general") == ["float32"]
    assert outputs.logits.dtype == outputs.features.dtype == jnp.float32
    for leaf in jax.tree.leaves((variables, updates)):
        assert leaf.dtype == jnp.float32


def test_in_bfloat16_the_real_step_keeps_its_state_and_its_losses_in_float32():
    """ResNet50 -> MobileNetV3-Small, traced; nothing is compiled."""
    mesh = mesh_of(1)
    teacher, student = (
        create_model(name, dtype=jnp.bfloat16, bn_axis_name=AXIS)
        for name in ("resnet50", "mobilenet_v3_small")
    )
    optimizer = optim.make_optimizer(
        learning_rate=1e-3,
        total_steps=10,
        warmup_steps=0,
        weight_decay=1e-4,
        clip_norm=1.0,
    )
    image = jnp.zeros((2, 32, 32, 3), jnp.float32)

    def initial(model: nn.Module) -> Variables:
        return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    step = steps.make_train_step(
        student,
        optimizer,
        tiny.distill_terms(tiny.shapes_of(student, teacher)),
        Teachers([Teacher(teacher, initial(teacher))]),
        ema_decay=0.9,
        seed=0,
        axis_name=AXIS,
    )
    batch = {"image": image, "label": jnp.zeros(2, jnp.int32)}
    state = jax.eval_shape(
        lambda v: create_state(v, optimizer, use_ema=True), initial(student)
    )
    frozen = (initial(teacher),)
    mapped = parallel.map_train_step(step, mesh)
    with plain_convolutions():
        program = jax.make_jaxpr(mapped)(state, frozen, batch)
        after, metrics = jax.eval_shape(mapped, state, frozen, batch)
    assert {"loss", "hard_loss", "soft_loss", "gradient_norm"} <= metrics.keys()
    for tree in (after.variables, after.ema, metrics):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}
    for leaf in jax.tree.leaves(after.opt_state):
        assert leaf.dtype == (jnp.float32 if leaf.ndim else leaf.dtype)
    # What is averaged over the devices: statistics, gradients, losses.
    averaged = operand_dtypes(program, "psum") + operand_dtypes(
        program, "psum_invariant"
    )
    assert len(averaged) > 100
    assert set(averaged) == {"float32"}


@pytest.mark.parametrize("num_devices", [1, 8])
def test_views_rendered_in_the_step_train_as_those_of_the_host(num_devices: int):
    mesh = mesh_of(num_devices)
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (tiny.BATCH_SIZE, 12, 12, 3), np.uint8)
    transforms, colours = draw_views(
        seed=0,
        view=0,
        indices=np.arange(tiny.BATCH_SIZE),
        settings=MILD,
        size_in=12,
        size_out=tiny.IMAGE_SIZE,
    )
    label = tiny.batch(0)["label"]
    host = augment_batch(pictures, transforms, colours, size=tiny.IMAGE_SIZE)
    raw = {"image": pictures, "transform": transforms, "colour": colours}
    spy, student = SpyTeacher(), tiny.network(axis_name=AXIS)
    taught_by = tiny.teachers(mesh, spy)
    terms = tiny.distill_terms(tiny.shapes_of(student, spy))
    found = []
    for render, batch in ((False, {"image": host}), (True, raw)):
        state, train_step = tiny.make_run(
            mesh, student, terms, taught_by, render=render
        )
        on_devices = parallel.shard_batch(mesh, {**batch, "label": label})
        state, metrics = train_step(state, taught_by.frozen, on_devices)
        found.append(jax.device_get((metrics, state.variables)))
    (theirs, their_variables), (ours, our_variables) = found
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, err_msg=name)
    assert_close(
        our_variables["batch_stats"], their_variables["batch_stats"], atol=1e-4
    )


def test_the_same_run_twice_is_the_same_bit_for_bit():
    first = trained("distill", 8)["states"][-1]
    trained.cache_clear()
    again = trained("distill", 8)["states"][-1]
    assert checkpoint.fingerprint(first.variables) == checkpoint.fingerprint(
        again.variables
    )
