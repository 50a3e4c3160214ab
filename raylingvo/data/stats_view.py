"""What `raylingvo data stats` and `data bench` print for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BAR = 40  # characters of the longest


def print_stats(result: Mapping[str, Any]) -> None:
    lengths, unit = result["lengths"], result["unit"]
    print(f"{result['records']:,} records, {lengths['total']:,} {unit}")
    shown = "  ".join(f"{name} {value:,.4g}" for name, value in lengths.items() if name != "total")
    print(f"length in {unit}: {shown}\n")
    most = max(number for _, number in result["histogram"])
    for upper, number in result["histogram"]:
        print(f"{'<= ' + str(upper):>10} {number:>12,} {'#' * -(-number * _BAR // most)}")
    suited = result["buckets"]
    print(f"\nsuggested buckets, {suited['padding_waste']:.1%} padding:")
    print(f"  bucket_bounds {suited['upper_bounds']}")
    print(f"  bucket_batch_sizes {suited['batch_sizes']}")
    if "plot" in result:
        print(result["plot"])


def print_bench(result: Mapping[str, Any]) -> None:
    print(
        f"{result['experiment']} {result['dataset']}: {result['batches']} batches of {result['examples']:,} examples "
        f"in {result['seconds']:.2f} s, first batch after {result['open_seconds']:.2f} s"
    )
    print(f"{result['examples_per_second']:,.0f} examples/s, {result['batches_per_second']:,.1f} batches/s")
    if "tokens" in result:
        print(f"{result['tokens_per_second']:,.0f} tokens/s, {result['padding_waste']:.1%} padding")
    for name, value in result["facts"].items():
        print(f"{name} {value:,.6g}")
