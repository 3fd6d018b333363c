"""What the numbers of an audit mean: which gradients may be trusted."""

from typing import Any

EXACT_MODES = ("exact", "backprop")
EXACT_LIMITS = {"float32": 1e-5, "float64": 1e-12}
"""Largest relative error that these may have: over all images in float32, of every single one in float64."""

ROUNDING_LIMIT = 1e-3
"""What float32's rounding may make of `backprop` where a long path amplifies it; `exact` may then be as far off."""

VALUE_LIMIT = 1e-3
"""Largest error of a purified pixel in float32."""


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For each mode at the configured setting, whether it may be used to attack, in a sentence; and where a setting of
    the sweep breaks a promise.

    `passed` is False where a promise is broken: `exact` and `backprop` are the true gradient, and all modes have the
    same values. It is None for modes that promise no more than that.
    """
    lines = []
    for row in result["gradients"]:
        broken, facts = (
            _broken(row, result["gradients"]),
            f"relative error {row['relative_error']:.1e}, cosine {row['cosine']['median']:.3f}",
        )
        passed = None if not broken and row["mode"] not in EXACT_MODES else not broken
        if broken:
            text = f"{facts}: WRONG: {', '.join(broken)}"
        elif passed:
            text = f"{facts}: the true gradient"
        elif row["not_finite"]:
            text = f"not finite for {row['not_finite']:.0%} of the images: useless"
        elif row["cosine"]["min"] > 0.9 and row["relative_error_images"]["max"] < 0.5:
            text = f"{facts}: close to the true gradient at this setting"
        else:
            text = f"{facts}: not the gradient of this defence; robust accuracy measured with it can be far too high"
        lines.append(
            {"mode": row["mode"], "precision": row["precision"], "steps": row["steps"], "passed": passed, "text": text}
        )
    for row in result["sweep"]:
        same = [
            other for other in result["sweep"] if (other["t_star"], other["steps"]) == (row["t_star"], row["steps"])
        ]
        broken = _broken(row, same)
        if broken:
            text = f"at t* = {row['t_star']}: WRONG: {', '.join(broken)}"
            lines.append(
                {
                    "mode": row["mode"],
                    "precision": row["precision"],
                    "steps": row["steps"],
                    "passed": False,
                    "text": text,
                }
            )
    if "finite_differences" in result:
        error, steps = result["finite_differences"]["exact"], result["gradients"][0]["steps"]
        text = f"differ from exact by {error:.1e} of its norm"
        lines.append(
            {"mode": "finite differences", "precision": "float64", "steps": steps, "passed": error < 1e-6, "text": text}
        )
    return lines


def _broken(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The promises that `row` breaks; `rows` are those of the same setting."""
    broken = []
    if row["value_as_backprop"] is False:
        broken.append("values differ from those of backprop")
    if row["value_error"] > VALUE_LIMIT:
        broken.append(f"values are off by {row['value_error']:.0e}")
    if row["mode"] not in EXACT_MODES:
        return broken
    if row["zero"] or row["not_finite"]:
        broken.append("dead gradients")
    if not row["gradient_as_backprop"]:
        broken.append("gradients differ from those of backprop")
    if row["precision"] == "float64":
        error, limit = row["relative_error_images"]["max"], EXACT_LIMITS["float64"]
    else:
        # A long path amplifies float32's rounding; more than backprop suffers from it, `exact` may not.
        unrolled = next(
            other["relative_error"] for other in rows if (other["mode"], other["precision"]) == ("backprop", "float32")
        )
        error, limit = (
            row["relative_error"],
            max(
                EXACT_LIMITS["float32"],
                1.01 * unrolled * (row["mode"] == "exact"),
                ROUNDING_LIMIT * (row["mode"] == "backprop"),
            ),
        )
    if not error < limit:
        broken.append(f"an error beyond {limit:.0e}")
    return broken
