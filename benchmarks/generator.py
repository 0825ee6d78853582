"""Noise plus add on one CPU thread: our generator against torch.randn. `python -m benchmarks.generator`."""

import torch

from benchmarks.common import interleaved, save
from scalarfl.kernels import STREAM, cpu

COORDINATES = STREAM * 8
LEAST = 5.0


def main() -> None:
    torch.set_num_threads(1)
    x = torch.zeros(COORDINATES)
    blocks = [(begin, x[begin : begin + STREAM]) for begin in range(0, COORDINATES, STREAM)]

    def ours() -> None:
        for begin, part in blocks:
            cpu.displace(part, part, None, 1, 0, begin, 0, 1e-3)

    noise = torch.empty(COORDINATES)

    def torch_randn() -> None:
        x.add_(torch.randn(COORDINATES, out=noise), alpha=1e-3)  # at its best: without making the buffer anew

    def memory() -> None:
        x.add_(1e-3)

    seconds = interleaved({"ours": ours, "torch.randn": torch_randn, "add alone": memory})
    rates = {name: COORDINATES / value / 1e9 for name, value in seconds.items()}
    ratio = rates["ours"] / rates["torch.randn"]
    for name, rate in rates.items():
        print(f"{name:<12} {rate:6.2f} G coordinates/s")
    print(f"ours / torch.randn: {ratio:.1f} (at least {LEAST:g} is promised)")
    save("generator", {"coordinates": COORDINATES, "giga_coordinates_per_second": rates, "ratio": ratio})
    if ratio < LEAST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
