"""The training step alone, on one batch that stays, in a process of its own.

    python -m benchmarks.train_step [--model=mobilenet_v3_small] [--size=224]

Prints images/s, the median of several rounds of some steps.
"""

from benchmarks import flags, pictures


def main() -> None:
    """Print one number."""
    parser = flags.make_parser(__doc__)
    flags.add_training_step(parser)
    parser.add_argument(
        "--devices", type=flags.positive, default=flags.CORES, help="virtual ones"
    )
    parser.add_argument("--rounds", type=flags.positive, default=5)
    parser.add_argument("--steps", type=flags.positive, default=3, help="in a round")
    arguments = parser.parse_args()

    from benchmarks import jax_networks
    from benchmarks.timing import interleave, rates
    from mela_jax import parallel

    jax_networks.set_up(arguments.devices)
    count = arguments.batch_size
    parallel.check_batch_size(count, field="batch_size")
    network = jax_networks.Network(
        arguments.model, pictures.noise_batch(batch_size=count, size=arguments.size)
    )
    seconds = interleave(
        {"train": lambda: network.train_many(arguments.steps)}, rounds=arguments.rounds
    )
    print(f"{rates(seconds, arguments.steps * count)['train']:.2f}")


if __name__ == "__main__":
    flags.run(main)
