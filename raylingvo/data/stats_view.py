"""What `raylingvo data stats` and `data bench` print for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BAR = 40  # characters of the longest


def print_stats(result: Mapping[str, Any]) -> None:
    lengths, unit = result["lengths"], result["unit"]
    print(f"{result['records']:,} records, {lengths['total']:,} {unit}")
    shown = "  ".join(f"{name} {_number(value)}" for name, value in lengths.items() if name != "total")
    print(f"length in {unit}: {shown}\n")
    most = max(number for _, number in result["histogram"])
    for upper, number in result["histogram"]:
        print(f"{f'<= {upper:,}':>12} {number:>12,} {'#' * -(-number * _BAR // most)}")
    suited = result["buckets"]
    print(f"\nsuggested buckets, {suited['padding_waste']:.1%} padding:")
    # As Python's lists, to be copied into an experiment.
    print(f"  bucket_bounds {suited['upper_bounds']}")
    print(f"  bucket_batch_sizes {suited['batch_sizes']}")
    if "plot" in result:
        print(result["plot"])


def print_bench(result: Mapping[str, Any]) -> None:
    unit = "rows" if "rows" in result else "examples"
    print(
        f"{result['experiment']} {result['dataset']}: {result['batches']:,} batches of {result[unit]:,} {unit} "
        f"in {result['seconds']:,.2f} s, first batch after {result['open_seconds']:,.2f} s"
    )
    print(f"{result[f'{unit}_per_second']:,.0f} {unit}/s, {result['batches_per_second']:,.1f} batches/s")
    if "tokens" in result:
        for column, number in result["tokens_per_second"].items():
            print(f"{column}: {result['tokens'][column]:,} tokens, {number:,.0f} tokens/s")
        print(f"{result['padding_waste']:.1%} padding")
    for name, value in result["facts"].items():
        print(f"{name} {_number(value)}")


def _number(value: float) -> str:
    """Whole numbers in full, others with four digits or more."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
