"""The distillation step on a GPU, beside the same step in PyTorch, in one run.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --skip_torch

ResNet50 -> MobileNetV3-Small at 224 px, batch 256, bfloat16, in JAX as the project
trains it and in PyTorch (torchvision's networks, channels-last, autocast,
torch.compile), measured in turn. Then epochs of the input pipeline on made-up images
whose views the device renders. On a machine without a GPU, tiny sizes show that it
works, and nothing else:

    python -m benchmarks.gpu --batch_size=4 --image_size=32 --train_size=40 \
        --images=8 --epochs=1 --steps=1 --rounds=1 --matrix_size=64
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Sequence

# Before JAX is imported: two frameworks share the card's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks import gpu_jax
from benchmarks.gpu_settings import Settings
from benchmarks.timing import interleave
from mela_jax import parallel
from mela_jax.errors import UserError

TORCH_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
TARGET = 1.2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0 done, 2 refused."""
    arguments = _parse(argv)
    settings = Settings(
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        steps=arguments.steps,
        matrix_size=arguments.matrix_size,
        products=arguments.products,
        images=arguments.images,
        epochs=arguments.epochs,
        train_size=arguments.train_size,
        seed=arguments.seed,
    )
    timing = {"rounds": arguments.rounds, "warmup": arguments.warmup}
    try:
        _check(settings, skip_torch=arguments.skip_torch)
        modes = () if arguments.skip_torch else tuple(arguments.torch_modes)
        measure_step(settings, modes, **timing)
        if not arguments.skip_pipeline:
            measure_pipeline(settings, **timing)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_step(
    settings: Settings, modes: Sequence[str], *, rounds: int, warmup: int
) -> None:
    """Measure the step in JAX and in each mode of PyTorch's compiler; print it.

    Raises:
      UserError: when the two do not compute on the same kind of device.
    """
    teacher, student = gpu_jax.forward_flops(settings)
    # Of training, the backward pass is twice the forward pass; the teacher has none.
    flops = teacher + 3 * student
    print(f"JAX {jax.__version__} on {', '.join(parallel.describe_devices())}")
    torch_runs = {}
    if modes:
        from benchmarks import gpu_torch

        _compare_networks(settings, (teacher, student))
        torch_runs = {
            f"PyTorch, compile {mode}": gpu_torch.make_step_run(settings, mode=mode)
            for mode in modes
        }
    runs = {
        "matrix": gpu_jax.make_matrix_run(settings),
        "JAX": gpu_jax.make_step_run(settings),
        **torch_runs,
    }
    seconds = interleave(runs, rounds=rounds, warmup=warmup)
    products = settings.products * 2 * settings.matrix_size**3
    matrix_rate = products / statistics.median(seconds["matrix"])
    images = settings.batch_size * settings.steps
    print(
        f"\nDistillation step ResNet50 -> MobileNetV3-Small, {settings.image_size} px,"
        f" batch {settings.batch_size}, bfloat16\n"
        f"{flops / 1e9:.2f} GFLOP an image (teacher forward {teacher / 1e9:.2f},"
        f" student forward {student / 1e9:.3f} and twice that backward)\n"
        f"measured matrix rate: {matrix_rate / 1e12:.3g} TFLOP/s, bfloat16 product of"
        f" {settings.matrix_size} x {settings.matrix_size}\n"
        f"medians of {rounds} rounds of {settings.steps} steps, in turn; slowest and"
        " fastest round in brackets\n"
    )
    print(
        f"{'':38}{'images/s':>26}{'ms/step':>10}{'TFLOP/s':>10}{'of matrix rate':>16}"
    )
    for name in ("JAX", *torch_runs):
        rate, text = _rate(images, seconds[name])
        print(
            f"{name:38}{text:>26}{1e3 * settings.batch_size / rate:10.2f}"
            f"{rate * flops / 1e12:10.3g}{rate * flops / matrix_rate:16.1%}"
        )
    if torch_runs:
        best = min(torch_runs, key=lambda name: statistics.median(seconds[name]))
        ratio = statistics.median(seconds[best]) / statistics.median(seconds["JAX"])
        print(f"\nratio JAX / {best}: {ratio:.2f} (target {TARGET})")


def measure_pipeline(settings: Settings, *, rounds: int, warmup: int) -> None:
    """Measure epochs of the input pipeline on made-up images; print it."""
    host = importlib.util.find_spec("cv2") is not None
    num_steps = settings.epochs * (settings.images // settings.batch_size)
    runs = gpu_jax.make_epoch_runs(settings, host=host)
    seconds = interleave(runs, rounds=rounds, warmup=warmup)
    images = num_steps * settings.batch_size
    print(
        f"\nThe input pipeline: {images} made-up images of {settings.train_size} px"
        f" ({settings.epochs} epochs), views of {settings.image_size} px,"
        f" {os.cpu_count()} CPU cores\n"
    )
    print(f"{'':38}{'images/s':>26}")
    for name, values in seconds.items():
        print(f"{name:38}{_rate(images, values)[1]:>26}")
    whole, alone, *_ = (statistics.median(values) for values in seconds.values())
    print(f"\nratio end to end / steps alone: {alone / whole:.2f}")
    if not host:
        print("views on the host: not measured, OpenCV is not installed here")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = {
        "batch_size": (256, 1, "images in a step"),
        "image_size": (224, 32, "side of the images that the models see, in pixels"),
        "steps": (20, 1, "steps in a measured call"),
        "rounds": (7, 1, "measured calls of each"),
        "warmup": (2, 1, "calls before, which compile"),
        "matrix_size": (8192, 1, "side of the matrices of the matrix rate"),
        "products": (20, 1, "matrix products in a measured call"),
        "images": (4096, 1, "made-up images in an epoch"),
        "epochs": (4, 1, "epochs in a measured call"),
        "train_size": (288, 32, "side of the made-up images, in pixels"),
        "seed": (0, 0, "source of weights, images and labels"),
    }
    for name, (default, least, what) in sizes.items():
        parser.add_argument(
            f"--{name}",
            type=_at_least(least),
            default=default,
            help=f"{what} (default {default})",
        )
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
    return parser.parse_args(argv)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


def _check(settings: Settings, *, skip_torch: bool) -> None:
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
    if skip_torch:
        return
    for name in ("torch", "torchvision"):
        try:
            importlib.import_module(name)
        # Whichever of the three a missing package, library or version raises.
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"there is nothing to compare with: {name} cannot be imported"
                f" ({' '.join(str(error).split())}); install it, or measure the JAX"
                " half alone with --skip_torch"
            ) from error


def _compare_networks(settings: Settings, ours: tuple[int, int]) -> None:
    """Say what JAX is compared with, and that it does the same work.

    Args:
      settings: sizes of the measurement.
      ours: operations of one image through JAX's teacher and student.

    Raises:
      UserError: when it does not, or computes elsewhere.
    """
    import torch
    import torchvision

    from benchmarks import gpu_torch

    place = gpu_torch.device().type
    if (place == "cpu") != (jax.default_backend() == "cpu"):
        raise UserError(
            f"JAX computes on {jax.default_backend()} and PyTorch on {place}: install"
            " both for the same device, or measure the JAX half alone with --skip_torch"
        )
    theirs = gpu_torch.forward_flops(settings)
    print(
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__} on {place}"
    )
    for name, our, their in zip(("teacher", "student"), ours, theirs, strict=True):
        counted = f"{our / 1e9:.3f} in JAX, {their / 1e9:.3f} in PyTorch"
        print(f"{name}, GFLOP of a forward pass: {counted}")
        if abs(their / our - 1) > 0.02:
            raise UserError(
                f"the {name} of this torchvision is another network than the project's:"
                " the comparison would mean nothing"
            )


def _rate(images: int, seconds: Sequence[float]) -> tuple[float, str]:
    """Return the median images/s, and as text with slowest and fastest round."""
    low, middle, high = (images / f(seconds) for f in (max, statistics.median, min))
    return middle, f"{middle:,.1f} ({low:,.1f}-{high:,.1f})"


if __name__ == "__main__":
    sys.exit(main())
