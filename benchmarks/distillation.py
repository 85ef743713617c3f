"""The distillation step beside Keras on TensorFlow, on a CPU.

    python -m benchmarks.distillation [--teacher=mobilenet_v3_large] [--student=...]

A step runs the frozen teacher on the batch and trains the student on labels and
teacher: float32, binary cross-entropy, alpha 0.5, temperature 2, AdamW with the
gradient clipped, a moving average of the weights. TensorFlow uses one thread a core;
mela_jax one virtual device a core. Steps are taken in turn in this one process.
"""

from benchmarks import flags, pictures


def main() -> None:
    """Print images/s of each side and their ratio."""
    parser = flags.make_parser(__doc__)
    parser.add_argument(
        "--teacher", choices=flags.NETWORKS, default="mobilenet_v3_large"
    )
    parser.add_argument(
        "--student", choices=flags.NETWORKS, default="mobilenet_v3_small"
    )
    parser.add_argument("--size", type=flags.positive, default=224, help="pixels")
    parser.add_argument("--batch_size", type=flags.positive, default=32)
    parser.add_argument("--rounds", type=flags.positive, default=20)
    parser.add_argument("--cores", type=flags.positive, default=flags.CORES)
    parser.add_argument(
        "--jit", action="store_true", help="TensorFlow's jit_compile; slow on a CPU"
    )
    arguments = parser.parse_args()

    from benchmarks import jax_networks, keras_networks
    from benchmarks.timing import interleave, rates
    from mela_jax import parallel

    jax_networks.set_up(arguments.cores)
    size, count = arguments.size, arguments.batch_size
    parallel.check_batch_size(count, field="batch_size")
    batch = pictures.noise_batch(batch_size=count, size=size)
    ours = jax_networks.Network(arguments.student, batch, teacher=arguments.teacher)
    images, labels = keras_networks.batch_of(batch)
    teacher = keras_networks.create_keras_model(arguments.teacher, size)
    # Or the tape would keep what its gradient needs.
    teacher.trainable = False
    step = keras_networks.make_keras_train_step(
        keras_networks.create_keras_model(arguments.student, size),
        jit=arguments.jit,
        teacher=teacher,
    )
    speed = rates(
        interleave(
            {"mela_jax": ours.train, "keras": lambda: step(images, labels).numpy()},
            rounds=arguments.rounds,
            warmup=2,
        ),
        count,
    )
    print(
        f"distillation {arguments.teacher} -> {arguments.student},"
        f" {arguments.cores} cores, batch {count}, {size} px, float32; images/s,"
        f" median of {arguments.rounds}\n"
        f"mela_jax {speed['mela_jax']:.1f}"
        f"   keras, jit {'on' if arguments.jit else 'off'} {speed['keras']:.1f}"
        f"   ratio {speed['mela_jax'] / speed['keras']:.2f}"
    )


if __name__ == "__main__":
    flags.run(main)
