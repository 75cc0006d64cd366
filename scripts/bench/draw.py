#!/usr/bin/env python3
"""Draws what bench.py and curves.py left in a directory, as SVG made by hand.

    draw.py DIR
"""

import json
import math
import pathlib
import sys

import bench
import work

COLOURS = {"trialfs": "#1f6f8b", "trialfs-local": "#4aa3a2", "rclone": "#c98b2b", "juicefs": "#7a9e3f", "s3fs": "#a05a7a", "plain": "#888888", "raw": "#bbbbbb"}
WIDTH, LABEL, BAR, GAP = 860, 330, 13, 16


def text(x, y, words, anchor="start", size=12):
    words = str(words).replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def svg(height, body):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *body, "</svg>"]) + "\n"


def bars(results) -> str:
    """A group a row, a bar a file system, on a logarithmic scale of its own."""
    figures, body, y = results["figures"], [], 30
    body.append(text(10, 20, f"{results['latency_ms']:g} ms of round trip; medians of {results['rounds']}", size=14))
    rows = [(f"{row}.{figure}", words) for row, shown in bench.SHOWN.items() for figure, _, words in shown]
    for key, words in rows:
        got = {name: bench.numbers(values) for name, values in figures.get(key, {}).items() if name in COLOURS}
        got = {name: work.median(values) for name, values in got.items() if values and work.median(values) > 0}
        if not got:
            continue
        low, high = min(got.values()), max(got.values())
        span = math.log(high / low * 4) or 1
        body.append(text(10, y + 12, words.replace("`", "")))
        for name, value in got.items():
            width = (WIDTH - LABEL - 190) * math.log(value / low * 4) / span
            body.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
            body.append(text(LABEL + width + 5, y + 10, f"{bench.number(value)}  {name}", size=11))
            y += BAR
        y += GAP
    return svg(y, body)


def lines(curves) -> str:
    """A panel a curve, both axes logarithmic."""
    body, panel_w, panel_h = [], WIDTH // 2, 230
    for i, (name, points) in enumerate(curves.items()):
        left, top = (i % 2) * panel_w + 60, (i // 2) * panel_h + 40
        w, h = panel_w - 110, panel_h - 90
        body.append(text(left - 40, top - 18, name.replace("`", ""), size=12))
        points = [(x, y) for x, y in points if y > 0]
        if not points:
            continue
        span = lambda values: max(math.log(max(values) / min(values)), 1e-9)
        (xs, ys) = zip(*points)
        at = [(left + w * math.log(x / min(xs)) / span(xs), top + h - h * math.log(y / min(ys)) / span(ys)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        body.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS["trialfs"]}" stroke-width="2"/>')
        for (x, y), (px, py) in zip(points, at):
            body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{COLOURS["trialfs"]}"/>')
            body.append(text(px, py - 7, bench.number(y), "middle", 10))
            body.append(text(px, top + h + 18, f"{x:,}", "middle", 10))
    return svg((len(curves) + 1) // 2 * panel_h + 10, body)


def main():
    directory = pathlib.Path(sys.argv[1])
    for path in directory.glob("*.json"):
        content = json.loads(path.read_text())
        drawn = lines(content) if path.stem == "curves" else bars(content)
        path.with_suffix(".svg").write_text(drawn)


if __name__ == "__main__":
    main()
