"""The JAX half of `benchmarks.gpu`: the project's own steps and its own pipeline.

Imports neither TensorFlow nor what only the whole job needs, except where a function
says so.
"""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_settings import Settings
from benchmarks.threads import fetch_ahead
from mela_jax import optim, parallel, steps
from mela_jax.data.input_pipeline import make_train_fetch
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import make_hard_term, make_soft_term
from mela_jax.losses import LabelLoss, cross_entropy
from mela_jax.models.cost import count_flops
from mela_jax.models.head import Classifier
from mela_jax.models.zoo import create_model
from mela_jax.state import TrainState, Variables, create_state

# As mela_jax.config has them.
AUGMENT = AugmentSettings(
    flip=True,
    rotate=True,
    crop_min_area=0.6,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.02,
)


class Distillation:
    """The distillation step of the project, on whatever device JAX computes on.

    Args:
      settings: sizes and numbers of the measurement.
      render: render the views of the batch within the step.
    """

    def __init__(self, settings: Settings, *, render: bool):
        self._settings = settings
        self.mesh = parallel.make_mesh()
        teacher, student = networks()
        optimizer = optim.make_optimizer(
            learning_rate=settings.learning_rate,
            total_steps=settings.total_steps,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        frozen = parallel.replicate(
            self.mesh, initial(teacher, settings, seed=settings.seed)
        )
        self.teachers = Teachers([Teacher(teacher, frozen)])
        step = steps.make_train_step(
            student,
            optimizer,
            (
                make_hard_term(LabelLoss(cross_entropy), weight=1.0 - settings.alpha),
                make_soft_term(weight=settings.alpha, temperature=settings.temperature),
            ),
            self.teachers,
            ema_decay=0.0,
            seed=settings.seed,
            axis_name=parallel.BATCH_AXIS,
        )
        if render:
            step = steps.render_views(step, image_size=settings.image_size)
        self._step = parallel.map_train_step(step, self.mesh)
        variables = initial(student, settings, seed=settings.seed + 1)
        self._state: TrainState = parallel.replicate(
            self.mesh, create_state(variables, optimizer, use_ema=False)
        )

    def run(self, batches: Iterable[dict[str, jax.Array]]) -> None:
        """Take a step on each batch and wait for the last.

        Raises:
          RuntimeError: when the loss is not finite: whatever was timed, it was not
            training.
        """
        metrics = {}
        for batch in batches:
            self._state, metrics = self._step(self._state, self.teachers.frozen, batch)
        jax.block_until_ready(self._state)
        if not math.isfinite(float(metrics["loss"])):
            raise RuntimeError("JAX: the loss is not finite")


def networks() -> tuple[Classifier, Classifier]:
    """Return teacher and student, computing in bfloat16."""
    teacher, student = (
        create_model(name, dtype=jnp.bfloat16, bn_axis_name=parallel.BATCH_AXIS)
        for name in ("resnet50", "mobilenet_v3_small")
    )
    return teacher, student


def initial(model: Classifier, settings: Settings, *, seed: int) -> Variables:
    """Return random variables."""
    image = jnp.zeros((1, settings.image_size, settings.image_size, 3), jnp.float32)
    init = jax.jit(lambda key: model.init(key, image, train=False))
    return init(jax.random.key(seed))


def forward_flops(settings: Settings) -> tuple[int, int]:
    """Count the operations of one image through the teacher and the student."""
    teacher, student = (
        count_flops(
            model,
            jax.eval_shape(functools.partial(initial, model, settings, seed=0)),
            image_size=settings.image_size,
        )
        for model in networks()
    )
    return teacher, student


def make_step_run(settings: Settings) -> Callable[[], None]:
    """Return a run of `settings.steps` steps on one batch that lies on the device."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    training = Distillation(settings, render=False)
    batch = parallel.shard_batch(
        training.mesh,
        {
            "image": rng.uniform(0, 255, shape).astype(np.float32),
            "label": rng.integers(0, 2, settings.batch_size).astype(np.int32),
        },
    )
    return lambda: training.run([batch] * settings.steps)


def make_matrix_run(settings: Settings) -> Callable[[], None]:
    """Return a run of `settings.products` products of two square bfloat16 matrices."""
    n = settings.matrix_size
    a, b = (
        jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2)
    )
    product = jax.jit(jnp.matmul)

    def run() -> None:
        for _ in range(settings.products):
            result = product(a, b)
        result.block_until_ready()

    return run


def make_epoch_runs(settings: Settings, *, host: bool) -> dict[str, Callable[[], None]]:
    """Return runs of some epochs on made-up images, end to end and in parts.

    Args:
      settings: sizes and numbers of the measurement.
      host: also epochs whose views OpenCV renders on the host.

    Raises:
      UserError: fewer images than a batch.
    """
    rng = np.random.default_rng(settings.seed)
    side = settings.train_size
    images = rng.integers(0, 256, (settings.images, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, settings.images)
    rows = np.arange(settings.images)
    options = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    views = Views(AUGMENT, on_device=True)
    fetch = make_train_fetch(images, labels, rows, views=views, **options)
    num_steps = settings.epochs * (settings.images // settings.batch_size)
    training = Distillation(settings, render=True)
    batch = parallel.shard_batch(training.mesh, training.teachers.inputs(fetch(0)))

    def end_to_end() -> None:
        fetched = fetch_ahead(fetch, start=0, stop=num_steps)
        batches = map(training.teachers.inputs, fetched)
        training.run(parallel.prefetch(training.mesh, batches))

    def host_part() -> None:
        for _ in fetch_ahead(fetch, start=0, stop=num_steps):
            pass

    runs = {
        "epochs, views on the device": end_to_end,
        "their steps alone, with views": lambda: training.run([batch] * num_steps),
        "their host part alone": host_part,
    }
    if host:
        plain = Distillation(settings, render=False)
        views = Views(AUGMENT)
        rendered = make_train_fetch(images, labels, rows, views=views, **options)

        def rendered_on_host() -> None:
            fetched = fetch_ahead(rendered, start=0, stop=num_steps)
            batches = map(plain.teachers.inputs, fetched)
            plain.run(parallel.prefetch(plain.mesh, batches))

        runs["epochs, views on the host"] = rendered_on_host
    return runs
