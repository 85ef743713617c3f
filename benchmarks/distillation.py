"""The distillation step beside Keras on TensorFlow, on a CPU.

    python -m benchmarks.distillation [--teacher=mobilenet_v3_large] [--student=...]

A step runs the frozen teacher on the batch and trains the student on labels and
teacher, at alpha 0.5 and temperature 2; for the rest see `benchmarks.networks`.
"""

from benchmarks import harness, networks


def main() -> None:
    """Print images/s of each side and their ratio."""
    parser = harness.make_parser(
        __doc__, rounds=(20, "timed steps a turn"), **networks.NUMBERS
    )
    for flag, default in (("teacher", "large"), ("student", "small")):
        parser.add_argument(
            f"--{flag}", choices=networks.NETWORKS, default=f"mobilenet_v3_{default}"
        )
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("rounds", *networks.NUMBERS)}
    speed = networks.images_per_second(
        ("mela_jax", "keras"),
        arguments.student,
        teacher=arguments.teacher,
        kinds=["train"],
        **options,
    )["train"]
    print(
        f"distillation {arguments.teacher} -> {arguments.student},"
        f" {harness.CORES} cores, batch {arguments.batch_size}, {arguments.size} px,"
        f" float32; images/s, median of {arguments.turns} x {arguments.rounds}\n"
        f"mela_jax {speed['mela_jax']:.1f}"
        f"   keras {speed['keras']:.1f}"
        f"   ratio {speed['mela_jax'] / speed['keras']:.2f}"
    )


if __name__ == "__main__":
    harness.run(main)
