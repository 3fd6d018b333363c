"""What the numbers of an audit mean: which gradients may be trusted."""

from collections.abc import Sequence

from benchmarks.runs.schema import AuditResult
from benchmarks.runs.schema.audit import GradientRow, Verdict

EXACT_MODES = ("exact", "backprop")
EXACT_LIMITS = {"float32": 1e-5, "float64": 1e-12}
"""Largest relative error that these may have: over all images in float32, of every single one in float64."""

ROUNDING_LIMIT = 1e-3
"""What float32's rounding may make of `backprop` where a long path amplifies it; `exact` may then be as far off."""

VALUE_LIMIT = 1e-3
"""Largest error of a purified pixel in float32."""


def verdicts(result: AuditResult) -> list[Verdict]:
    """For each mode at the configured setting, whether it may be used to attack, in a sentence; and where a setting of
    the sweep breaks a promise.

    `passed` is False where a promise is broken: `exact` and `backprop` are the true gradient, and all modes have the
    same values. It is None for modes that promise no more than that.
    """
    lines = [_verdict(row, result.gradients) for row in result.gradients]
    for row in result.sweep:
        same = [other for other in result.sweep if (other.t_star, other.steps) == (row.t_star, row.steps)]
        broken = _broken(row, same)
        if broken:
            lines.append(_of(row, False, f"at t* = {row.t_star}: WRONG: {', '.join(broken)}"))
    if result.finite_differences is not None:
        error, steps = result.finite_differences.exact, result.gradients[0].steps
        text = f"differ from exact by {error:.1e} of its norm"
        name = "finite differences"
        lines.append(Verdict(mode=name, precision="float64", steps=steps, passed=error < 1e-6, text=text))
    return lines


def _verdict(row: GradientRow, rows: Sequence[GradientRow]) -> Verdict:
    """Of a mode at the configured setting, whose rows are `rows`."""
    broken = _broken(row, rows)
    facts = f"relative error {row.relative_error:.1e}, cosine {row.cosine.median:.3f}"
    if broken:
        return _of(row, False, f"{facts}: WRONG: {', '.join(broken)}")
    if row.mode in EXACT_MODES:
        return _of(row, True, f"{facts}: the true gradient")
    if row.not_finite:
        return _of(row, None, f"not finite for {row.not_finite:.0%} of the images: useless")
    if row.cosine.min > 0.9 and row.relative_error_images.max < 0.5:
        return _of(row, None, f"{facts}: close to the true gradient at this setting")
    text = "not the gradient of this defence; robust accuracy measured with it can be far too high"
    return _of(row, None, f"{facts}: {text}")


def _of(row: GradientRow, passed: bool | None, text: str) -> Verdict:
    return Verdict(mode=row.mode, precision=row.precision, steps=row.steps, passed=passed, text=text)


def _broken(row: GradientRow, rows: Sequence[GradientRow]) -> list[str]:
    """The promises that `row` breaks; `rows` are those of the same setting."""
    broken = []
    if row.value_as_backprop is False:
        broken.append("values differ from those of backprop")
    if row.value_error > VALUE_LIMIT:
        broken.append(f"values are off by {row.value_error:.0e}")
    if row.mode not in EXACT_MODES:
        return broken
    if row.zero or row.not_finite:
        broken.append("dead gradients")
    if not row.gradient_as_backprop:
        broken.append("gradients differ from those of backprop")
    error, limit = _error_and_limit(row, rows)
    if not error < limit:
        broken.append(f"an error beyond {limit:.0e}")
    return broken


def _error_and_limit(row: GradientRow, rows: Sequence[GradientRow]) -> tuple[float, float]:
    """Of a mode that promises the true gradient."""
    if row.precision == "float64":
        return row.relative_error_images.max, EXACT_LIMITS["float64"]
    # A long path amplifies float32's rounding; more than backprop suffers from it, `exact` may not.
    unrolled = next(other.relative_error for other in rows if (other.mode, other.precision) == ("backprop", "float32"))
    amplified = 1.01 * unrolled if row.mode == "exact" else ROUNDING_LIMIT
    return row.relative_error, max(EXACT_LIMITS["float32"], amplified)
