from dataclasses import replace

import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.evaluation.bootstrap import bootstrap
from mela_jax.evaluation.cross_validation import FIGURES, Fold, judge_folds
from mela_jax.evaluation.measure import Settings, evaluate_model
from mela_jax.evaluation.operating_point import (
    choose_threshold,
    confusion,
    guarantee_threshold,
)
from mela_jax.evaluation.scores import Predictions, pool
from tests.study.made_up import draw_scores

SETTINGS = Settings(target=0.9, num_bootstrap=40)
NUM_FOLDS = 4


def draw_folds(*, strength=2.0, run=0):
    """Draw k folds, each the test set of one model and validation of another."""
    return [
        Fold(
            number,
            val=draw_scores(
                f"part{(number + 1) % NUM_FOLDS}", strength=strength, run=(run, number)
            ),
            test=draw_scores(f"part{number}", strength=strength, run=(run, number)),
        )
        for number in range(NUM_FOLDS)
    ]


def draw_split(run=0):
    return Fold(
        -1,
        val=draw_scores("val", strength=2.0, run=(run,)),
        test=draw_scores("test", strength=2.0, run=(run,)),
    )


def with_scores(scores, score):
    return replace(scores, score=score)


@pytest.mark.parametrize("policy", ["empirical", "guaranteed"])
def test_a_fixed_split_has_the_figures_of_its_own_report(policy):
    fold = draw_split()
    settings = replace(SETTINGS, policy=policy, target=0.8, delta=0.2)
    expected = evaluate_model(fold.val, fold.test, settings)["test"]
    for source in ("own", "pooled"):
        found = judge_folds([fold], settings, source=source)
        point = expected["operating_point"]
        assert found.thresholds == (point["threshold"],)
        assert vars(found.confusion) == point["confusion"]
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            assert found.values[name] == pytest.approx(point[name]["value"])
        for name in ("roc_auc", "pr_auc"):
            assert found.values[name] == pytest.approx(expected[name]["value"])


def test_areas_vary_over_lesions_as_in_the_bootstrap_of_a_report():
    fold = draw_split()
    settings = replace(SETTINGS, num_bootstrap=800)
    found = judge_folds([fold], settings)
    other = bootstrap(fold.test, num_bootstrap=800, seed=5)
    for name in ("roc_auc", "pr_auc"):
        mine, theirs = found.replicates[name], other.replicates[name]
        assert mine.std() == pytest.approx(theirs.std(), rel=0.15)


@pytest.mark.parametrize("policy", ["empirical", "guaranteed"])
def test_a_replicate_is_what_copies_of_its_lesions_would_give(policy, monkeypatch):
    # One resampling, in which lesion k is drawn k % 3 times.
    fold = draw_split()
    settings = replace(SETTINGS, num_bootstrap=1, policy=policy, target=0.8, delta=0.2)

    def times(lesion_ids):
        return np.asarray([int(n.rsplit("lesion")[1]) % 3 for n in lesion_ids])

    monkeypatch.setattr(
        "mela_jax.evaluation.cross_validation.resample_lesions",
        lambda lesion_ids, **_: iter([times(lesion_ids)[None]]),
    )
    found = judge_folds([fold], settings)
    val, test = (
        (
            np.repeat(scores.label, times(scores.lesion_id)),
            np.repeat(scores.score, times(scores.lesion_id)),
        )
        for scores in (fold.val, fold.test)
    )
    if policy == "empirical":
        threshold = choose_threshold(*val, target=0.8)
    else:
        # The second copy of a lesion is another lesion of its kind.
        lesions = [
            f"{name} copy {copy}"
            for name in fold.val.lesion_id
            for copy in range(int(name.rsplit("lesion")[1]) % 3)
        ]
        threshold = guarantee_threshold(*val, lesions, target=0.8, delta=0.2).threshold
    assert threshold != found.thresholds[0]
    counts = confusion(*test, threshold)
    assert found.replicates["sensitivity"] == [counts.tp / (counts.tp + counts.fn)]
    assert found.replicates["specificity"] == [counts.tn / (counts.tn + counts.fp)]
    assert found.replicates["ppv"] == [counts.tp / (counts.tp + counts.fp)]
    assert found.replicates["npv"] == [counts.tn / (counts.tn + counts.fn)]


def test_the_resampled_threshold_makes_intervals_wider_than_a_frozen_one():
    fold = draw_split()
    settings = replace(SETTINGS, num_bootstrap=400)
    free = judge_folds([fold], settings).replicates["specificity"]
    # With one melanoma score on validation every resampling has the same threshold.
    at = judge_folds([fold], settings).thresholds[0]
    still = with_scores(fold.val, np.full(fold.val.score.size, at))
    frozen = judge_folds([replace(fold, val=still)], settings)
    assert frozen.thresholds == (at,)
    assert free.std() > 1.3 * frozen.replicates["specificity"].std()


def test_rates_are_those_of_all_folds_together_and_areas_their_mean():
    folds = draw_folds()
    found = judge_folds(folds, SETTINGS)
    apart = [judge_folds([fold], SETTINGS) for fold in folds]
    assert found.thresholds == tuple(each.thresholds[0] for each in apart)
    for name in ("tp", "fp", "tn", "fn"):
        total = sum(getattr(each.confusion, name) for each in apart)
        assert getattr(found.confusion, name) == total
    counts = found.confusion
    assert found.values["ppv"] == counts.tp / (counts.tp + counts.fp)
    for name in ("roc_auc", "pr_auc"):
        mean = np.mean([each.values[name] for each in apart])
        assert found.values[name] == pytest.approx(mean)


def test_pooled_thresholds_leave_out_the_lesions_that_they_judge():
    folds = draw_folds()
    found = judge_folds(folds, SETTINGS, source="pooled")
    for i, fold in enumerate(folds):
        # The fold's own lesions are validation of the fold before it.
        others = [f.val for j, f in enumerate(folds) if j != (i - 1) % NUM_FOLDS]
        judged = set(fold.test.lesion_id)
        assert not judged & {x for part in others for x in part.lesion_id}
        together = pool(others)
        assert found.thresholds[i] == choose_threshold(
            together.label, together.score, target=SETTINGS.target
        )


@pytest.mark.parametrize("source", ["own", "pooled"])
def test_no_score_of_a_lesion_moves_the_threshold_that_judges_it(source):
    folds = draw_folds()
    before = judge_folds(folds, SETTINGS, source=source)
    judged = set(folds[2].test.lesion_id)

    def spoil(scores):
        held = np.asarray([name in judged for name in scores.lesion_id])
        return with_scores(scores, np.where(held, 1 - scores.score, scores.score))

    spoilt = [Fold(f.number, spoil(f.val), spoil(f.test)) for f in folds]
    after = judge_folds(spoilt, SETTINGS, source=source)
    assert after.thresholds[2] == before.thresholds[2]
    assert after.thresholds != before.thresholds


def test_a_lesion_is_drawn_as_often_in_validation_as_in_test():
    # A model that scores by lesion alone, the same in every fold: where the threshold
    # and the test set come from the same draw, sensitivity keeps the target.
    fold = draw_split()
    test = Predictions(
        [f"copy of {name}" for name in fold.val.image_id],
        [f"copy of {name}" for name in fold.val.lesion_id],
        fold.val.label,
        fold.val.score,
    )
    names = replace(fold.val, image_id=test.image_id, lesion_id=test.lesion_id)
    parts = [Fold(0, fold.val, test), Fold(1, names, fold.val)]
    settings = replace(SETTINGS, num_bootstrap=200)
    apart = judge_folds(parts, settings).replicates["sensitivity"]
    # Independent draws of the two halves fall short of the target now and then, ...
    assert (apart < settings.target).any()
    # ... but the two folds mirror each other: one's surplus is the other's want.
    counts = [judge_folds([part], settings).replicates for part in parts]
    correlation = np.corrcoef([c["sensitivity"] for c in counts])[0, 1]
    assert correlation < -0.5


def test_models_on_the_same_images_are_resampled_alike():
    settings = replace(SETTINGS, num_bootstrap=200)
    a, b = (judge_folds([draw_split(run)], settings) for run in (1, 2))
    assert np.corrcoef(a.replicates["roc_auc"], b.replicates["roc_auc"])[0, 1] > 0.5
    again = judge_folds([draw_split(1)], settings)
    for name in FIGURES:
        assert np.array_equal(again.replicates[name], a.replicates[name])


def test_two_test_sets_that_share_a_lesion_are_refused():
    folds = draw_folds()
    with pytest.raises(UserError, match="test sets of folds 0 and 9"):
        judge_folds([*folds, replace(folds[0], number=9)], SETTINGS)


def test_validation_that_shares_a_lesion_with_test_is_refused():
    fold = draw_split()
    with pytest.raises(UserError, match="share"):
        judge_folds([replace(fold, val=fold.test)], SETTINGS)


def test_no_fold_is_refused():
    with pytest.raises(UserError, match="no fold"):
        judge_folds([], SETTINGS)


def test_too_few_melanomas_for_a_guarantee_are_refused():
    settings = replace(SETTINGS, policy="guaranteed", target=0.99)
    with pytest.raises(UserError, match="too few to guarantee"):
        judge_folds([draw_split()], settings)
