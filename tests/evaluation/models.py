"""Made-up scores of three models, for the tests of figures and report."""

from typing import Any

import numpy as np

from mela_jax.evaluation.measure import Settings, evaluate_model
from mela_jax.evaluation.scores import Predictions

TARGET = 0.9
MODELS = ("teacher", "student", "baseline")
SETTINGS = Settings(target=TARGET, num_bootstrap=100)


def draw_split(split: str, *, strength: float, seed: int) -> Predictions:
    """Draw 160 images of about 120 lesions; labels depend on the split alone."""
    rng = np.random.default_rng([len(split), 0])
    lesion = rng.integers(0, 130, size=160)
    label = (rng.random(130) < 0.2).astype(int)[lesion]
    noise = np.random.default_rng([len(split), seed]).normal(size=160)
    score = 1 / (1 + np.exp(-(strength * label - 1.5 + noise)))
    sites = np.asarray(["back", "face", "unknown"])[lesion % 3]
    return Predictions(
        [f"{split}{k}" for k in range(160)],
        [f"{split}-lesion{k}" for k in lesion],
        label,
        np.round(score, 2),  # ties
        {
            "age": [str(20 + k % 70) for k in lesion],
            "localization": sites.tolist(),
            "dx": np.where(
                label == 1, "mel", np.where(lesion % 2, "nv", "bcc")
            ).tolist(),
            "dx_type": np.where(lesion % 4, "histo", "follow_up").tolist(),
        },
    )


def draw_models() -> dict[str, dict[str, Predictions]]:
    """Draw validation and test scores of teacher, student and baseline."""
    return {
        name: {
            split: draw_split(split, strength=strength, seed=seed)
            for split in ("val", "test")
        }
        for seed, (name, strength) in enumerate(
            zip(MODELS, (3.0, 2.5, 1.5), strict=True), start=1
        )
    }


def evaluated(
    predictions: dict[str, dict[str, Predictions]], settings: Settings = SETTINGS
) -> dict[str, dict[str, Any]]:
    """Judge every model."""
    return {
        name: {
            "name": "mobilenet_v3_small",
            "params": 940_000,
            "flops": 58_000_000,
            **evaluate_model(splits["val"], splits["test"], settings),
        }
        for name, splits in predictions.items()
    }
