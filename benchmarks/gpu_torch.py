"""The PyTorch half of `benchmarks.gpu`: the same step with torchvision's networks.

As a PyTorch user would write it for speed: channels-last, autocast to bfloat16,
`torch.compile`, fused AdamW, cuDNN's own search for the fastest convolution.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_settings import Settings

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def device() -> torch.device:
    """Return the device that PyTorch computes on here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def networks() -> tuple[nn.Module, nn.Module]:
    """Return teacher and student with the arithmetic of the project's networks.

    One logit and the light head; and ResNet50's strides on the 1x1 convolutions, where
    the paper and Keras have them. torchvision strides in the 3x3 ones, which is 6 %
    more work.
    """
    teacher = torchvision.models.resnet50(weights=None)
    teacher.fc = nn.Linear(2048, 1)
    for stage in (teacher.layer2, teacher.layer3, teacher.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    student = torchvision.models.mobilenet_v3_small(weights=None)
    student.classifier = nn.Linear(576, 1)
    return teacher.eval().requires_grad_(False), student.train()


def forward_flops(settings: Settings) -> tuple[int, int]:
    """Count the operations of one image through the teacher and the student."""
    counts = []
    for network in networks():
        image = torch.zeros(1, 3, settings.image_size, settings.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(image)
        counts.append(counter.get_total_flops())
    teacher, student = counts
    return teacher, student


def distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """Return the mean of (1 - alpha) BCE + alpha T^2 KL(teacher || student).

    Args:
      logits: float32[B], the student's.
      targets: float32[B], the teacher's.
      labels: float32[B], 0 or 1.
      alpha: share of the soft loss.
      temperature: T.
    """
    hard = F.binary_cross_entropy_with_logits(logits, labels)
    z, t = logits / temperature, targets / temperature
    kl = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(z))
    kl = kl + torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-z))
    return (1 - alpha) * hard + alpha * temperature**2 * kl.mean()


def make_step_run(settings: Settings, *, mode: str) -> Callable[[], None]:
    """Return a run of `settings.steps` steps on one batch that lies on the device.

    Args:
      settings: sizes and numbers of the measurement.
      mode: of `torch.compile`.
    """
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    place = {"device": device(), "memory_format": torch.channels_last}
    teacher, student = (network.to(**place) for network in networks())
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    images = (torch.rand(shape) * 255).to(**place)
    labels = torch.randint(0, 2, shape[:1], device=device()).float()
    mean, std = (
        torch.tensor(numbers, device=device()).reshape(1, 3, 1, 1)
        for numbers in (_MEAN, _STD)
    )
    kernels = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _schedule(step, settings)
    )

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets = teacher((images / 255 - mean) / std).squeeze(1).float()
        logits = student(images / 127.5 - 1).squeeze(1).float()
        return distillation_loss(
            logits,
            targets,
            labels,
            alpha=settings.alpha,
            temperature=settings.temperature,
        )

    compiled = torch.compile(loss_fn, mode=mode)

    def run() -> None:
        for _ in range(settings.steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device().type, dtype=torch.bfloat16):
                loss = compiled(images, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), settings.clip_norm)
            optimizer.step()
            schedule.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not math.isfinite(loss.item()):
            raise RuntimeError("PyTorch: the loss is not finite")

    return run


def _schedule(step: int, settings: Settings) -> float:
    """Return the factor of the learning rate: linear warm-up, then half a cosine."""
    if step < settings.warmup_steps:
        return step / settings.warmup_steps
    done = (step - settings.warmup_steps) / (
        settings.total_steps - settings.warmup_steps
    )
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
