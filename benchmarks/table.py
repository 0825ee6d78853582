"""Rewrite the table in docs/performance.md from benchmarks/results/bench.json: `python -m benchmarks.table`."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table: written by benchmarks/table.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    """The findings as Markdown, one line each."""
    found = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text())
    lines = ["| what | against | ratio | promised | details |", "|---|---|---|---|---|"]
    for finding in found["findings"]:
        sign = "≥" if finding["at_least"] else "≤"
        promise = "-" if finding["limit"] is None else f"{sign} {finding['limit']:g}"
        mark = "" if finding["kept"] else " **missed**"
        details = ", ".join(f"{key}: {value:,.4g}" for key, value in finding["details"].items())
        lines.append(
            f"| {finding['name']} | {finding['opponent']} | {finding['ratio']:.2f}{mark} | {promise} | {details} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in found["environment"]["versions"].items())
    threads = found["environment"]["threads"]
    return "\n".join([*lines, "", f"{versions}; {found['environment']['machine']}, {threads} threads."]) + "\n"


def main() -> None:
    page = ROOT / "docs" / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n" + table() + "\n" + END + after)


if __name__ == "__main__":
    main()
