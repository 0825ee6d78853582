"""Bytes, seconds and shares as people read them."""


def size(bytes_: float) -> str:
    """Bytes for people: 1.2 kB, 3.4 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(bytes_) < 1000:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 10 s, 5 h 2 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(lr: float | str) -> str:
    """A learning rate: 0.003, or auto."""
    return lr if isinstance(lr, str) else f"{lr:g}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if value is None else f"{100 * value:.1f} %"


def ratio(value: float) -> str:
    """How many times: 1.21, 21.5, 3,216."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
