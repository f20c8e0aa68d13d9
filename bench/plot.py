"""Draw the time of each stage: docs/engine.svg from bench/split.json, the output of `bench/split.py --json`."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = {
    "decode": ("#4c78a8", ("decode",)),
    "mix, resample": ("#72b7b2", ("resample",)),
    "VAD": ("#f58518", ("vad",)),
    "encode FLAC": ("#54a24b", ("encode",)),
    "hash, scratch, cuts": ("#9d9da1", ("hash", "scratch", "segment")),
}
WIDTH, LEFT, TOP, ROW, BAR = 860, 170, 64, 34, 22
FIGURES_WIDTH = 165


def costs_us(row: dict[str, float]) -> dict[str, float]:
    """Return the microseconds of core time per second of audio, by the plot's stages."""
    return {name: sum(1e6 / row[stage] for stage in stages) for name, (_, stages) in STAGES.items()}


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    """Return one line of text as SVG."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{content}</text>'


def drawing(rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield the lines of an SVG with a bar of stages for each format."""
    costs = {name: costs_us(row) for name, row in rows.items()}
    scale = (WIDTH - LEFT - FIGURES_WIDTH) / max(sum(cost.values()) for cost in costs.values())
    height = TOP + ROW * len(rows) + 10
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="12" fill="#222">'
    )
    yield f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    yield text(LEFT, 20, "Core time for one second of audio, in microseconds", 'font-size="14"')
    x = float(LEFT)
    for name, (colour, _) in STAGES.items():
        yield f'<rect x="{x:.1f}" y="33" width="11" height="11" fill="{colour}"/>'
        yield text(x + 16, 43, name)
        x += 34 + 6.6 * len(name)
    for index, (name, cost) in enumerate(costs.items()):
        y, x = TOP + ROW * index, float(LEFT)
        yield text(LEFT - 10, y + BAR / 2 + 4, name, 'text-anchor="end"')
        for stage, cost_us in cost.items():
            width = cost_us * scale
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{STAGES[stage][0]}"/>'
            if width > 6 * len(f"{cost_us:.0f}"):
                yield text(x + width / 2, y + BAR / 2 + 4, f"{cost_us:.0f}", 'text-anchor="middle" fill="#fff"')
            x += width
        row = rows[name]
        yield text(x + 8, y + BAR / 2 + 4, f"{row['stt_async']:.0f}x real time, {row['ratio']:.1f}x ref.")
    yield "</svg>"


def main() -> int:
    """Draw the SVG."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", type=Path, default=ROOT / "bench" / "split.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "engine.svg")
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    options.out.write_text("\n".join(drawing(report["whole split, times real time"])) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
