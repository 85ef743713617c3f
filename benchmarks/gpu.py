"""The distillation step on a GPU, beside the same step in PyTorch, in one run.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --skip_torch --json=gpu.json

ResNet50 -> MobileNetV3-Small at 224 px, batch 256, bfloat16, in JAX as the project
trains it and in PyTorch (torchvision's networks, channels-last, autocast,
torch.compile), measured in turn. Then epochs of the input pipeline on made-up images
whose views the device renders. On a machine without a GPU, tiny sizes show that it
works, and nothing else:

    python -m benchmarks.gpu --batch_size=4 --image_size=32 --train_size=40 \
        --images=8 --epochs=1 --steps=1 --rounds=1 --matrix_size=64
"""

import argparse
import functools
import importlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Before JAX is imported: two frameworks share the card's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_networks
from benchmarks.gpu_record import Record, Run
from benchmarks.harness import fetch_ahead, make_parser, noise_batch
from mela_jax import parallel
from mela_jax.data.input_pipeline import make_train_fetch
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.errors import UserError
from mela_jax.models.cost import count_flops

TEACHER, STUDENT = "resnet50", "mobilenet_v3_small"
NUMBERS = {
    "batch_size": (256, "images in a step"),
    "image_size": (224, "side of the images that the models see, in pixels"),
    "steps": (20, "steps in a measured call"),
    "rounds": (7, "measured calls of each"),
    "warmup": (2, "calls before, the first of which compiles"),
    "matrix_size": (8192, "side of the matrices of the matrix rate"),
    "products": (20, "matrix products in a measured call"),
    "images": (4096, "made-up images in an epoch"),
    "epochs": (4, "epochs in a measured call"),
    "train_size": (288, "side of the made-up images, in pixels"),
}
OPTIMIZER = {
    "learning_rate": 1e-3,
    "total_steps": 100_000,  # more than are taken
    "warmup_steps": 1000,
    "weight_decay": 0.02,
    "clip_norm": 1.0,
}
make_training = functools.partial(
    jax_networks.Training,
    STUDENT,
    teacher=TEACHER,
    dtype=jnp.bfloat16,
    ema_decay=0.0,
    optimizer=OPTIMIZER,
)
TORCH_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
TARGET = 1.2
# As mela_jax.config has them, which needs ml_collections.
AUGMENT = AugmentSettings(
    flip=True,
    rotate=True,
    crop_min_area=0.6,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.02,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0 done, 2 refused."""
    parser = make_parser(__doc__, **NUMBERS)
    parser.add_argument(
        "--torch_modes",
        nargs="+",
        choices=TORCH_MODES,
        default=["default"],
        help="modes of torch.compile to measure; the ratio is to the fastest",
    )
    parser.add_argument(
        "--skip_torch", action="store_true", help="measure the JAX half alone"
    )
    parser.add_argument(
        "--skip_pipeline", action="store_true", help="leave out the input pipeline"
    )
    parser.add_argument(
        "--json", help="file that keeps every call, of a stopped run too"
    )
    settings = parser.parse_args(argv)
    record = Record(settings.json, settings=vars(settings))
    try:
        record.say(f"JAX {jax.__version__} imported", jax=jax.__version__)
        devices = parallel.describe_devices()
        record.say(f"devices: {', '.join(devices)}", devices=devices)
        _check(settings)
        modes = () if settings.skip_torch else settings.torch_modes
        measure_step(settings, modes, record)
        if not settings.skip_pipeline:
            measure_pipeline(settings, record)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_step(
    settings: argparse.Namespace, modes: Sequence[str], record: Record
) -> None:
    """Measure the step in JAX and in each mode of PyTorch's compiler; print it.

    Raises:
      UserError: PyTorch is not there, or does other work on another kind of device.
    """
    teacher, student = forward_flops(settings.image_size)
    # Of training, the backward pass is twice the forward pass; the teacher has none.
    flops = teacher + 3 * student
    record.say("operations counted", flop_an_image=flops)
    products = settings.products * 2 * settings.matrix_size**3
    images = settings.batch_size * settings.steps
    work = images, "images"
    makers: dict[str, tuple[Callable[[], Run], float, str]] = {
        "matrix": (functools.partial(make_matrix_run, settings), products, "FLOP"),
        "JAX": (functools.partial(make_step_run, settings), *work),
    }
    if modes:
        make_torch_run = _torch_half(settings.image_size, (teacher, student))
    for mode in modes:
        make = functools.partial(make_torch_run, settings, mode, OPTIMIZER)
        makers[f"PyTorch, compile {mode}"] = (make, *work)
    seconds = record.time(makers, settings.rounds, settings.warmup)
    matrix_rate = products / statistics.median(seconds.pop("matrix"))
    print(
        f"\nDistillation step ResNet50 -> MobileNetV3-Small, {settings.image_size} px,"
        f" batch {settings.batch_size}, bfloat16\n"
        f"{flops / 1e9:.2f} GFLOP an image (teacher forward {teacher / 1e9:.2f},"
        f" student forward {student / 1e9:.3f} and twice that backward)\n"
        f"measured matrix rate: {matrix_rate / 1e12:.3g} TFLOP/s, bfloat16 product of"
        f" {settings.matrix_size} x {settings.matrix_size}\n"
        f"medians of {settings.rounds} rounds of {settings.steps} steps, in turn;"
        " slowest and fastest round in brackets\n\n"
        f"{'':38}{'images/s':>26}{'ms/step':>10}{'TFLOP/s':>10}{'of matrix rate':>16}"
    )
    for name, values in seconds.items():
        rate, text = _rate(images, values)
        print(
            f"{name:38}{text:>26}{1e3 * settings.batch_size / rate:10.2f}"
            f"{rate * flops / 1e12:10.3g}{rate * flops / matrix_rate:16.1%}"
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians.pop("JAX")
    if medians:
        best = min(medians, key=lambda name: medians[name])
        print(f"\nratio JAX / {best}: {medians[best] / ours:.2f} (target {TARGET})")


def measure_pipeline(settings: argparse.Namespace, record: Record) -> None:
    """Measure epochs of the input pipeline on made-up images; print it."""
    host = importlib.util.find_spec("cv2") is not None
    num_steps = settings.epochs * (settings.images // settings.batch_size)
    images = num_steps * settings.batch_size
    runs = make_epoch_runs(settings, num_steps, host=host)
    makers = {
        name: (lambda run=run: run, images, "images") for name, run in runs.items()
    }
    seconds = record.time(makers, settings.rounds, settings.warmup)
    print(
        f"\nThe input pipeline: {images} made-up images of {settings.train_size} px"
        f" ({settings.epochs} epochs), views of {settings.image_size} px,"
        f" {os.cpu_count()} CPU cores\n\n{'':38}{'images/s':>26}"
    )
    for name, values in seconds.items():
        print(f"{name:38}{_rate(images, values)[1]:>26}")
    whole, alone, *_ = (statistics.median(values) for values in seconds.values())
    print(f"\nratio end to end / steps alone: {alone / whole:.2f}")
    if not host:
        print("views on the host: not measured, OpenCV is not installed here")


def forward_flops(image_size: int) -> tuple[int, int]:
    """Count the operations of one image through the teacher and the student."""
    counts = []
    for name in (TEACHER, STUDENT):
        model = jax_networks.network(name, jnp.bfloat16)
        init = functools.partial(jax_networks.initial, model, image_size)
        counts.append(count_flops(model, jax.eval_shape(init), image_size=image_size))
    teacher, student = counts
    return teacher, student


def make_step_run(settings: argparse.Namespace) -> Run:
    """Return a run of `settings.steps` steps on one batch that lies on the device."""
    size = settings.image_size
    training = make_training(size, render=False)
    batch = training.put(noise_batch(batch_size=settings.batch_size, size=size))
    return lambda: training.train([batch] * settings.steps)


def make_matrix_run(settings: argparse.Namespace) -> Run:
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


def make_epoch_runs(
    settings: argparse.Namespace, num_steps: int, *, host: bool
) -> dict[str, Run]:
    """Return runs of some epochs on made-up images, end to end and in parts.

    With `host` also epochs whose views OpenCV renders on the host.

    Raises:
      UserError: fewer images than a batch.
    """
    rng = np.random.default_rng(0)
    size, side = settings.image_size, settings.train_size
    images = rng.integers(0, 256, (settings.images, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, settings.images)

    def make_fetch(*, on_device: bool) -> Callable[[int], Any]:
        return make_train_fetch(
            images,
            labels,
            np.arange(settings.images),
            views=Views(AUGMENT, on_device=on_device),
            image_size=size,
            batch_size=settings.batch_size,
            seed=0,
        )

    def train(training: jax_networks.Training, fetch: Callable[[int], Any]) -> None:
        fetched = fetch_ahead(fetch, start=0, stop=num_steps)
        batches = map(training.teachers.inputs, fetched)
        training.train(parallel.prefetch(training.mesh, batches))

    def fetch_only() -> None:
        for _ in fetch_ahead(fetch, start=0, stop=num_steps):
            pass

    fetch = make_fetch(on_device=True)
    training = make_training(size, render=True)
    batch = training.put(fetch(0))
    runs: dict[str, Run] = {
        "epochs, views on the device": functools.partial(train, training, fetch),
        "their steps alone, with views": lambda: training.train([batch] * num_steps),
        "their host part alone": fetch_only,
    }
    if host:
        runs["epochs, views on the host"] = functools.partial(
            train, make_training(size, render=False), make_fetch(on_device=False)
        )
    return runs


def _check(settings: argparse.Namespace) -> None:
    """Find out before anything is compiled what cannot be measured."""
    if jax.device_count() > 1:
        raise UserError(
            f"JAX sees {jax.device_count()} devices, and one is compared with one: hide"
            " the others, for example with CUDA_VISIBLE_DEVICES=0"
        )
    if settings.images < settings.batch_size:
        raise UserError(
            f"--images={settings.images} is less than a batch of"
            f" {settings.batch_size}; give more, or --skip_pipeline"
        )
    for name in ("image_size", "train_size"):
        if getattr(settings, name) < 32:
            raise UserError(f"--{name}={getattr(settings, name)} is below 32 pixels")


def _torch_half(image_size: int, ours: tuple[int, int]) -> Callable[..., Run]:
    """Return `gpu_torch.make_step_run`; say what it runs on, and that it does the same.

    `ours` are the operations of one image through JAX's teacher and student.

    Raises:
      UserError: when it does not, computes elsewhere, or cannot be imported.
    """
    for name in ("torch", "torchvision"):
        try:
            module = importlib.import_module(name)
        # Whichever of the three a missing package, library or version raises.
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"there is nothing to compare with: {name} cannot be imported"
                f" ({' '.join(str(error).split())}); install it, or measure the JAX"
                " half alone with --skip_torch"
            ) from error
        print(f"{name} {module.__version__}")
    from benchmarks import gpu_torch

    place = gpu_torch.device().type
    if (place == "cpu") != (jax.default_backend() == "cpu"):
        raise UserError(
            f"JAX computes on {jax.default_backend()} and PyTorch on {place}: install"
            " both for the same device, or measure the JAX half alone with --skip_torch"
        )
    theirs = gpu_torch.forward_flops(image_size)
    for name, our, their in zip(("teacher", "student"), ours, theirs, strict=True):
        counted = f"{our / 1e9:.3f} in JAX, {their / 1e9:.3f} in PyTorch on {place}"
        print(f"{name}, GFLOP of a forward pass: {counted}")
        if abs(their / our - 1) > 0.02:
            raise UserError(
                f"the {name} of this torchvision is another network than the project's:"
                " the comparison would mean nothing"
            )
    return gpu_torch.make_step_run


def _rate(images: int, seconds: Sequence[float]) -> tuple[float, str]:
    """Return the median images/s, and as text with slowest and fastest round."""
    low, middle, high = (images / f(seconds) for f in (max, statistics.median, min))
    return middle, f"{middle:,.1f} ({low:,.1f}-{high:,.1f})"


if __name__ == "__main__":
    sys.exit(main())
