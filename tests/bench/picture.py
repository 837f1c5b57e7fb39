#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""Draws what tests/bench/run.py has measured: nanoseconds for one answer, on a log scale, as SVG.

    picture.py RESULTS.json >PICTURE.svg
"""
import json
import math
import sys
from xml.sax.saxutils import escape

# key of the row, whose time of it, what it is called in the picture, is it ours?
BARS = [
    ("closed_inlined", "beside_ns", "one acquire load and a branch", False),
    ("closed_inlined", "ns", "cbshm, closed", True),
    ("open", "ns", "cbshm, open", True),
    ("rwlock", "beside_ns", "process-shared rwlock", False),
    ("state_closed", "ns", "cbshm, whole record, closed", True),
    ("state_open", "beside_ns", "as many bytes, plain seqlock", False),
    ("open_ttl", "beside_ns", "clock_gettime", False),
    ("open_ttl", "ns", "cbshm, open with a TTL", True),
    ("state_open", "ns", "cbshm, whole record, open", True),
    ("lmdb", "beside_ns", "LMDB get", False),
    ("redis", "beside_ns", "Redis GET, Unix socket", False),
    ("postgres", "beside_ns", "PostgreSQL SELECT, prepared", False),
]
LEFT, RIGHT, TOP, STEP, WIDTH = 230, 90, 46, 24, 820


def nanoseconds(value):
    """0.27 ns, 23 ns, 9.1 µs"""
    value, unit = (value / 1000, "µs") if value >= 1000 else (value, "ns")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def draw(results):
    rows = {row["key"]: row for row in results["rows"]}
    bars = [(rows[key][which], name, ours) for key, which, name, ours in BARS if key in rows]
    first = math.floor(math.log10(min(value for value, _, _ in bars)))
    last = math.ceil(math.log10(max(value for value, _, _ in bars)))
    height = TOP + STEP * len(bars) + 34

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - first) / (last - first)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
           f'height="{height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
           '<text x="12" y="22" font-size="15" font-weight="bold">Time for one answer (log scale, less is '
           'better)</text>']
    for power in range(first, last + 1):
        at = f"{x(10.0 ** power):.1f}"
        out.append(f'<line x1="{at}" y1="{TOP - 8}" x2="{at}" y2="{height - 28}" stroke="#d8d8d8"/>')
        out.append(f'<text x="{at}" y="{height - 12}" text-anchor="middle" fill="#555555">'
                   f'{nanoseconds(10.0 ** power)}</text>')
    for number, (value, name, ours) in enumerate(bars):
        y = TOP + STEP * number
        out.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{x(value) - LEFT:.1f}" height="17" '
                   f'fill="{"#1f6fb2" if ours else "#b5b5b5"}"/>')
        out.append(f'<text x="{x(value) + 6:.1f}" y="{y + 13}">{nanoseconds(value)}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.stdout.write(draw(json.load(file)))


if __name__ == "__main__":
    main()
