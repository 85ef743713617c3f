"""Training and evaluation steps: pure functions, as one device sees them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mela_jax.data.views_on_device import augment_batch
from mela_jax.distill.teachers import Teachers
from mela_jax.distill.terms import Batch, Seen, Term
from mela_jax.models.fake_quant import make_fake_quantized
from mela_jax.models.head import Classifier
from mela_jax.models.outputs import Outputs
from mela_jax.state import TrainState, Variables

Metrics = dict[str, jax.Array]
Frozen = Sequence[Variables]
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    network: Classifier,
    optimizer: optax.GradientTransformation,
    terms: Sequence[Term],
    teachers: Teachers,
    *,
    ema_decay: float,
    seed: int,
    axis_name: str,
    fake_quantize: bool = False,
) -> TrainStep:
    """Return step(state, frozen, batch) -> (state, metrics) for any model.

    The gradient is put together by hand from three parts, body, head and terms, so that
    what each term contributes is known: its gradient by the maps of the body is there
    before the body, the expensive part, is differentiated once for all.

    What is minimised is the weighted sum of the terms, by the parameters of the network
    and of the terms' auxiliary modules; the teachers' variables are handed to the step.
    Dropout masks and skipped blocks come of the seed and the step's number. Gradients
    and metrics are averaged over the mesh axis `axis_name`. With `fake_quantize` the
    network feels the rounding of an int8 file.

    The batch holds "image" float32[b, S, S, 3] in [0, 255], V views of an image after
    each other, and "label" int32[b / V], this device's rows. The metrics are float32[],
    the same on every device: "loss"; "gradient_norm"; for each term NAME_loss, its
    weight included, and, of several terms, NAME_gradient_share: the norm of its
    gradient by the maps of the body over the sum of all terms' norms. Near 0, a term
    has no say, whatever the configuration claims.
    """
    apply = make_fake_quantized(network) if fake_quantize else network.apply

    def step(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = state.variables["params"]

        def extract(body: Any) -> tuple[dict[str, jax.Array], Any]:
            return apply(
                {**state.variables, "params": {"body": body}},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
                method=Classifier.extract,
            )

        def classify(head: Any, maps: dict[str, jax.Array]) -> Outputs:
            found: Any = apply(
                {"params": {"head": head}},
                maps,
                train=True,
                rngs={"dropout": dropout_key},
                method=Classifier.classify,
            )
            return found

        maps, extract_vjp, updates = jax.vjp(extract, params["body"], has_aux=True)
        outputs, classify_vjp = jax.vjp(classify, params["head"], maps)
        answers = teachers.answer(frozen, batch)

        def differentiate(term: Term, outputs: Outputs) -> _Found:
            seen = Seen(outputs, answers, batch)
            return _differentiate(term, seen, state.aux, axis_name)

        found = {term: differentiate(term, outputs) for term in terms}
        # The last term first, as automatic differentiation of their sum has it.
        by_outputs = jax.tree.map(
            lambda *each: sum(each), *(f.gradient for f in reversed(found.values()))
        )
        by_head, by_maps = classify_vjp(by_outputs)
        (by_body,) = extract_vjp(by_maps)
        gradients = {
            "network": {"body": by_body, "head": by_head},
            "aux": {term.name: f.by_aux for term, f in found.items() if term.aux},
        }
        gradients = jax.lax.pmean(gradients, axis_name)
        metrics = {
            "loss": sum(f.loss for f in found.values()),
            **{f"{term.name}_loss": f.loss for term, f in found.items()},
        }
        metrics = jax.lax.pmean(metrics, axis_name)
        if len(terms) > 1:
            # Apart from the gradient that trains: the compiler fuses, and so rounds,
            # what has another reader otherwise, and looking on must change nothing.
            # Terms that take long are not computed twice for it.
            apart = jax.lax.optimization_barrier(outputs)
            looked_at = [
                f.gradient
                if term.aux or term.whole_batch
                else differentiate(term, apart).gradient
                for term, f in found.items()
            ]
            norms = [_norm(classify_vjp(g)[1], axis_name) for g in looked_at]
            # All gradients can be exactly zero where the losses are saturated.
            total = jnp.maximum(sum(norms), 1e-30)
            for term, norm in zip(terms, norms, strict=True):
                metrics[f"{term.name}_gradient_share"] = norm / total
        metrics["gradient_norm"] = optax.global_norm(gradients)
        before = state.trained
        changes, opt_state = optimizer.update(gradients, state.opt_state, before)
        after = optax.apply_updates(before, changes)
        variables = {"params": after["network"], **jax.lax.pmean(updates, axis_name)}
        aux = {
            term.name: {
                "params": after["aux"][term.name],
                **jax.lax.pmean(f.aux_updates, axis_name),
            }
            for term, f in found.items()
            if term.aux
        }
        new_state = TrainState(
            step=state.step + 1,
            variables=variables,
            aux=aux,
            opt_state=opt_state,
            ema=_moving_average(state, variables, ema_decay),
        )
        return new_state, metrics

    return step


class _Found(NamedTuple):
    """A term's loss, weight included, and its gradients on this device.

    They are the gradient by the student's `Outputs` and by the parameters of the term's
    auxiliary module, {} without one; `aux_updates` are that module's new statistics.
    """

    loss: jax.Array
    gradient: Outputs
    by_aux: Any
    aux_updates: Any


def _differentiate(
    term: Term, seen: Seen, aux: Mapping[str, Variables], axis_name: str
) -> _Found:
    """Compute a term and its gradients.

    A term that must see the whole batch gets it from all devices. Each then computes
    the same loss, and the gather's transpose sums over the devices what they say of
    one's rows: that is as many times the gradient as there are devices, as a mean over
    a device's own rows has it too, and averaging over the devices is right for both.
    """
    own = aux[term.name] if term.aux else {"params": {}}

    def value(student: Outputs, params: Any) -> tuple[jax.Array, Any]:
        updates: dict[str, Any] = {}

        def apply(*args: jax.Array) -> Any:
            assert term.aux is not None, f"{term.name} has no auxiliary module"
            result, updated = term.aux.apply(
                {**own, "params": params}, *args, train=True, mutable=["batch_stats"]
            )
            updates.update(updated)
            return result

        all_seen = seen._replace(student=student)
        if term.whole_batch:
            all_seen = jax.tree.map(
                lambda x: jax.lax.all_gather(x, axis_name, tiled=True), all_seen
            )
        return (term.weight * term.loss(all_seen, apply)).mean(), updates

    loss, vjp, updates = jax.vjp(value, seen.student, own["params"], has_aux=True)
    gradient, by_aux = vjp(jnp.ones_like(loss))
    return _Found(loss, gradient, by_aux, updates)


def _norm(tree: Any, axis_name: str) -> jax.Array:
    """Return the norm of a gradient whose rows are spread over the devices."""
    squares = sum(
        jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)
    )
    return jnp.sqrt(jax.lax.pmean(squares, axis_name))


def _moving_average(
    state: TrainState, variables: Variables, decay: float
) -> Variables | None:
    if state.ema is None:
        return None
    # Early on a long memory would be of the random start: let it grow with the steps,
    # as tf.train.ExponentialMovingAverage does with num_updates.
    done = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(
        lambda average, new: average + (1.0 - decay_now) * (new - average),
        state.ema,
        variables,
    )


def make_render(*, image_size: int) -> Callable[[Batch], jax.Array]:
    """Return render(batch) -> its views float32[b, image_size, image_size, 3].

    The batch holds "image" uint8[b / V, T, T, 3], each picture once, and, as
    `draw_views` gives them, "transform" float32[b, 2, 3] and "colour" float32[b, 3, 4].
    """
    return lambda batch: augment_batch(
        batch["image"], batch["transform"], batch["colour"], size=image_size
    )


def render_views(step: TrainStep, *, image_size: int) -> TrainStep:
    """Return a step that first renders the views of a batch of `make_render`."""
    render = make_render(image_size=image_size)

    def rendering(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        return step(state, frozen, {**batch, "image": render(batch)})

    return rendering


def make_eval_step(model: nn.Module) -> Callable[[Variables, jax.Array], jax.Array]:
    """Return step(variables, images float[b, S, S, 3]) -> logits float32[b, K]."""

    def step(variables: Variables, images: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, images.astype(jnp.float32), train=False)
        return outputs.logits

    return step
