"""Numbers as text and as axis ticks. A missing number is an en dash, never "nan"."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "–"
MINUS = "\u2212"


def fixed(value: float, decimals: int) -> str:
    """A number with fixed decimals and a real minus sign; a zero never carries a sign."""
    if not math.isfinite(value):
        return MISSING
    text = f"{abs(value):,.{decimals}f}".replace(",", "\u202f")
    negative = value < 0 and any(digit in "123456789" for digit in text)
    return (MINUS if negative else "") + text


def signed(value: float, decimals: int) -> str:
    """Like ``fixed`` with a plus sign in front of what is above zero."""
    text = fixed(value, decimals)
    plus = math.isfinite(value) and value > 0 and any(digit in "123456789" for digit in text)
    return ("+" if plus else "") + text


def short(value: float) -> str:
    """About three significant digits, for ticks and read-outs: 0.0123, 12.3, 1,230 and 1.2e-6."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{size:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", MINUS)
    else:
        decimals = max(0, 2 - math.floor(math.log10(size)))
        text = f"{size:,.{decimals}f}".replace(",", "\u202f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return (MINUS if value < 0 else "") + text


def with_error(value: float, error: float) -> str:
    """A number with its standard error, both to the error's second digit: 0.587 ± 0.046."""
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return short(value)
    decimals = max(0, min(9, 1 - math.floor(math.log10(error))))
    return f"{fixed(value, decimals)} ± {fixed(error, decimals)}"


def seconds(value: float) -> str:
    """A duration: 850 ms, 12.3 s, 2 min 05 s, 1 h 02 min."""
    if not math.isfinite(value):
        return MISSING
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick values (steps of 1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], thinned to at most six; with 1-2-5 steps where the range is under two
    decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps: Iterable[float] = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in steps]
    ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return ticks[:: max(1, math.ceil(len(ticks) / 6))]


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean over ``width`` entries around each one; NaN entries count as absent, and stay NaN.

    At the ends the mean is over those of them that exist, half of ``width`` at least: narrowed to stay centred, the
    curve would end on a single number, which reads as a sudden turn.
    """
    half = width // 2
    sums, counts = [0.0], [0]
    for value in values:
        good = math.isfinite(value)
        sums.append(sums[-1] + (value if good else 0.0))
        counts.append(counts[-1] + good)
    smooth = []
    for index, value in enumerate(values):
        low, high = max(0, index - half), min(len(values), index + half + 1)
        count = counts[high] - counts[low]
        smooth.append((sums[high] - sums[low]) / count if count and math.isfinite(value) else math.nan)
    return smooth
