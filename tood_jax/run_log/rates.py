"""Rates, times and memory as the log of a run shows them."""

import math

import psutil

_GB = 1e9  # bytes


def images_per_second(images: int, seconds: float) -> float:
    """Return a rate; 0 where no time has passed."""
    return images / seconds if seconds > 0 else 0.0


def format_eta(steps_left: int, seconds_per_step: float) -> str:
    """Return the remaining time as "2d 03:04:05" or "03:04:05"; "?" where the speed is not known yet."""
    if not (math.isfinite(seconds_per_step) and seconds_per_step > 0):
        return "00:00:00" if steps_left <= 0 else "?"
    seconds = round(max(0, steps_left) * seconds_per_step)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days}d {clock}" if days else clock


def memory_report() -> dict[str, float]:
    """Return memory in 10⁹ bytes: "device_peak_gb" of the fullest device; on the CPU "process_gb", resident now."""
    import jax  # here, so that the log itself is free of it

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [row["peak_bytes_in_use"] for row in stats if "peak_bytes_in_use" in row]
    if peaks:
        return {"device_peak_gb": max(peaks) / _GB}
    return {"process_gb": psutil.Process().memory_info().rss / _GB}
