"""What both halves of `benchmarks.gpu` have in common."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes, of which the command line sets most, and the numbers of the training.

    Attributes:
      batch_size: images in a step.
      image_size: side of the square that the models see, in pixels.
      steps: steps in a measured call.
      matrix_size: side of the square matrices of the matrix rate.
      products: matrix products in a measured call.
      images: made-up images in an epoch of the input pipeline.
      epochs: epochs of the input pipeline in a measured call.
      train_size: side of those images, from which views are cropped, in pixels.
      seed: source of weights, images and labels.
      alpha: share of the soft loss.
      temperature: of the soft loss.
      learning_rate: peak of AdamW's cosine schedule.
      weight_decay: decoupled decay of kernels.
      clip_norm: largest global norm of the gradient.
      warmup_steps: of the schedule.
      total_steps: of the schedule; more than are taken.
    """

    batch_size: int
    image_size: int
    steps: int
    matrix_size: int
    products: int
    images: int
    epochs: int
    train_size: int
    seed: int
    alpha: float = 0.7
    temperature: float = 2.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    warmup_steps: int = 1000
    total_steps: int = 100_000
