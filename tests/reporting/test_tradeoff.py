"""Points and curves of the trade-off."""

from __future__ import annotations

from dataclasses import replace

from imsm.evaluation.statistics.forgetting import hypervolume
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint, matching_baselines, tradeoff_curves

PEFT = TradeoffPoint(
    label="peft", method="peft", baseline=None, value=None, target=80.0, plasticity=100.0, stability=40.0
)
ORIGINAL = replace(PEFT, label="original", method="original", target=20.0, plasticity=0.0, stability=100.0)
MIXES = [
    replace(PEFT, label=f"mix {value}", method="baseline", baseline="logit_mix", value=value, target=50.0)
    for value in (0.75, 0.25, 0.0, 1.0)
]


def test_a_curve_is_sorted_between_its_ends_and_skips_the_values_of_the_ends() -> None:
    (curve,) = tradeoff_curves([ORIGINAL, PEFT, *MIXES])
    assert [point.label for point in curve.points] == ["peft", "mix 0.25", "mix 0.75", "original"]
    scaled = [replace(mix, baseline="adapter_scale") for mix in MIXES]
    (curve,) = tradeoff_curves([ORIGINAL, PEFT, *scaled])
    assert [point.value for point in curve.points] == [None, 0.75, 0.25, None]


def test_the_own_adapter_of_a_run_replaces_the_peft_run() -> None:
    own = replace(PEFT, label="tuned", method="baseline", baseline="tuned", target=70.0)
    (curve,) = tradeoff_curves([ORIGINAL, PEFT, own, *MIXES])
    assert curve.points[0] is own


def test_without_an_end_there_is_no_curve() -> None:
    assert tradeoff_curves([PEFT, *MIXES]) == []
    assert tradeoff_curves([replace(ORIGINAL, stability=None), PEFT, *MIXES]) == []
    assert tradeoff_curves([ORIGINAL, PEFT]) == []


def test_points_without_plasticity_add_no_hypervolume() -> None:
    curve = TradeoffCurve(baseline="logit_mix", symbol="λ", points=[PEFT, ORIGINAL])
    assert curve.hypervolume == hypervolume([(1.0, 0.4), (0.0, 1.0)])
    assert replace(curve, points=[replace(PEFT, plasticity=None)]).hypervolume == 0.0


def test_cells_distinguish_undefined_from_missing() -> None:
    assert replace(PEFT, plasticity=None).cells() == {
        "plasticity": "undefined",
        "stability": "40.0 %",
        "harmonic mean": "undefined",
    }
    assert set(replace(PEFT, target=None, complete=False).cells().values()) == {"–"}


IMSM = replace(PEFT, label="imsm", method="imsm", target=70.0, plasticity=80.0, stability=60.0)


def test_a_swept_baseline_matches_a_run_that_retains_no_more_at_its_target_score() -> None:
    # from PEFT (80, 40) to (50, mix) the curve reaches the target score 70 at a third of the way
    for mix_stability, matched in ((100.0, True), (99.0, False)):
        mix = replace(
            PEFT, label="mix", method="baseline", baseline="logit_mix", value=0.5, target=50.0, stability=mix_stability
        )
        points = [ORIGINAL, PEFT, IMSM, mix]
        expected = {"imsm": ["logit mix"]} if matched else {}
        assert matching_baselines(points, tradeoff_curves(points)) == expected


def test_a_baseline_without_a_sweep_matches_if_it_is_worse_in_nothing() -> None:
    router = replace(PEFT, label="router", method="baseline", baseline="query_router", target=70.0, stability=60.0)
    assert matching_baselines([ORIGINAL, PEFT, IMSM, router], []) == {"imsm": ["router"]}
    for worse in (replace(router, target=69.9), replace(router, stability=59.9), replace(router, stability=None)):
        assert matching_baselines([ORIGINAL, PEFT, IMSM, worse], []) == {}


def test_an_upper_bound_and_the_adapter_alone_match_nothing() -> None:
    for name in ("oracle_router", "tuned"):
        best = replace(PEFT, label=name, method="baseline", baseline=name, target=100.0, stability=100.0)
        assert matching_baselines([ORIGINAL, PEFT, IMSM, best], []) == {}
