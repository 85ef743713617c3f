"""The classes of a model, and how melanoma is read out of its logits.

Whatever the number of classes, melanoma's log-odds are what threshold, calibration,
intervals and the phone file work on: sigmoid(log-odds) is P(melanoma).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from mela_jax.data.records import Record
from mela_jax.errors import UserError

# The diagnoses of HAM10000, in the order of the field's published seven-class models.
HAM7 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The K classes that a model tells apart: names in the order of the logits.

    `melanoma` is the index of the class that is melanoma. With one class, melanoma
    against the rest, there is one logit and labels are 1 for melanoma and 0 for
    anything else. With more, labels are indices of `names`.
    """

    names: tuple[str, ...] = ("melanoma",)
    melanoma: int = 0

    @property
    def num_logits(self) -> int:
        """K, the number of logits."""
        return len(self.names)

    @property
    def is_binary(self) -> bool:
        """Whether the only question is melanoma or not."""
        return self.num_logits == 1

    @property
    def label_of_melanoma(self) -> int:
        """The label that an image of melanoma has."""
        return 1 if self.is_binary else self.melanoma

    def is_melanoma(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return bool[n] of labels int[n]."""
        return np.asarray(labels) == self.label_of_melanoma

    def log_odds(self, logits: Any) -> Any:
        """Return melanoma's log-odds [...] of logits [..., K], NumPy's or JAX's.

        With K = 1 the logit itself; with more, z_mel - logsumexp(z of the others), so
        that its sigmoid is the softmax's share of melanoma. Finite for finite logits.

        >>> float(LabelSpace(("nv", "mel"), 1).log_odds(np.array([0.0, 3.0])))
        3.0
        """
        if logits.shape[-1] != self.num_logits:
            raise ValueError(f"logits {logits.shape} of {self.num_logits} classes")
        if self.is_binary:
            return logits[..., 0]
        xp = jnp if isinstance(logits, jax.Array) else np
        others = xp.delete(logits, self.melanoma, axis=-1)
        highest = others.max(axis=-1, keepdims=True)
        spread = xp.log(xp.exp(others - highest).sum(axis=-1))
        # In this order a large constant in all logits costs no digits.
        return (logits[..., self.melanoma] - highest[..., 0]) - spread

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return P(class) float64[n, K] of logits float[n, K], each row adding up to 1.

        Melanoma's is the sigmoid of its log-odds to the last bit, so that a table of
        all classes and one of melanoma alone agree. With K = 1 it is all there is.
        """
        logits = np.asarray(logits, np.float64)
        log_odds = self.log_odds(logits)
        if self.is_binary:
            return expit(log_odds)[:, None]
        others = np.arange(self.num_logits) != self.melanoma
        found = np.empty(logits.shape)
        found[:, self.melanoma] = expit(log_odds)
        # expit(-log_odds): 1 - P(melanoma), without losing what is small.
        share = softmax(logits[:, others], axis=-1)
        found[:, others] = expit(-log_odds)[:, None] * share
        return found


def make_label_space(
    kind: str, records: Sequence[Record], *, melanoma: str
) -> LabelSpace:
    """Return the classes that config.labels, here `kind`, asks for.

    They are melanoma against the rest, the seven diagnoses of HAM10000 ("ham7"), or
    those of the records in alphabetical order ("diagnoses").

    Raises:
      UserError: `melanoma` is none of two or more diagnoses.
    """
    if kind == "melanoma":
        return LabelSpace()
    names = HAM7 if kind == "ham7" else tuple(sorted({r.dx for r in records} - {""}))
    if melanoma not in names or len(names) < 2:
        raise UserError(
            f"config.melanoma={melanoma!r} is not one of two or more diagnoses:"
            f" config.labels={kind} has {', '.join(names) or 'none'}; name the one"
            " that is melanoma"
        )
    return LabelSpace(names, names.index(melanoma))


def class_labels(
    labels: LabelSpace, records: Sequence[Record]
) -> npt.NDArray[np.int32]:
    """Return the label int32[n] of every record.

    Raises:
      UserError: a diagnosis is none of the classes, or says otherwise than the record's
        label whether it is melanoma.
    """
    if labels.is_binary:
        return np.array([r.label for r in records], np.int32)
    found = []
    for r in records:
        if r.dx not in labels.names:
            raise UserError(
                f"{r.image_id}: its diagnosis is {r.dx!r}; config.labels knows"
                f" {', '.join(labels.names)}: correct the table, or take"
                " config.labels=melanoma"
            )
        label = labels.names.index(r.dx)
        if (label == labels.melanoma) != bool(r.label):
            raise UserError(
                f"{r.image_id}: its diagnosis is {r.dx!r} and its label says"
                f" {'melanoma' if r.label else 'not melanoma'}; correct one"
                f" (config.melanoma={labels.names[labels.melanoma]!r})"
            )
        found.append(label)
    return np.array(found, np.int32)
