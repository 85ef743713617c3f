"""The PyTorch half of `benchmarks.gpu`: the same step with torchvision's networks.

As a PyTorch user would write it for speed: channels-last, autocast to bfloat16,
`torch.compile`, fused AdamW, cuDNN's own search for the fastest convolution.
"""

import argparse
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.jax_networks import ALPHA, TEMPERATURE

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


def forward_flops(image_size: int) -> tuple[int, int]:
    """Count the operations of one image through the teacher and the student."""
    counts = []
    for network in networks():
        image = torch.zeros(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(image)
        counts.append(counter.get_total_flops())
    teacher, student = counts
    return teacher, student


def distillation_loss(
    logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the mean of (1 - alpha) BCE + alpha T^2 KL(teacher || student).

    All are float32[B]: logits of the student and of the teacher, and labels 0 or 1.
    """
    hard = F.binary_cross_entropy_with_logits(logits, labels)
    z, t = logits / TEMPERATURE, targets / TEMPERATURE
    kl = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(z))
    kl = kl + torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-z))
    return (1 - ALPHA) * hard + ALPHA * TEMPERATURE**2 * kl.mean()


def make_step_run(
    settings: argparse.Namespace, mode: str, optimizer: Mapping[str, float]
) -> Callable[[], None]:
    """Return a run of `settings.steps` steps on one batch that lies on the device.

    `mode` is of `torch.compile`; `optimizer` is what `make_optimizer` of JAX is given.
    """
    torch.manual_seed(0)
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
    adamw = torch.optim.AdamW(
        [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}],
        lr=optimizer["learning_rate"],
        weight_decay=optimizer["weight_decay"],
        fused=True,
    )
    warmup, total = optimizer["warmup_steps"], optimizer["total_steps"]

    def schedule(step: int) -> float:
        """Return the factor of the learning rate: warm-up, then half a cosine."""
        if step < warmup:
            return step / warmup
        done = (step - warmup) / (total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(adamw, schedule)

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets = teacher((images / 255 - mean) / std).squeeze(1).float()
        logits = student(images / 127.5 - 1).squeeze(1).float()
        return distillation_loss(logits, targets, labels)

    compiled = torch.compile(loss_fn, mode=mode)

    def run() -> None:
        for _ in range(settings.steps):
            adamw.zero_grad(set_to_none=True)
            with torch.autocast(device().type, dtype=torch.bfloat16):
                loss = compiled(images, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), optimizer["clip_norm"])
            adamw.step()
            scheduler.step()
        # Waits for the device.
        if not math.isfinite(loss.item()):
            raise RuntimeError("PyTorch: the loss is not finite")

    return run
