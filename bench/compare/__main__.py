"""python -m bench.compare: crystalline, NumPy and PyTorch on the same work; see docs/bench.md."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import bench.compare  # noqa: F401  (the benches beside it can be imported from here on)

GROUPS = ("gemm", "elementwise", "attention", "head", "output", "steps", "generation")


def settings(threads: int, samples: int, quick: bool, isa: str | None) -> Any:
    """The settings, with the peaks measured."""
    import peak

    from compare.contest import Settings
    from crystalline.errors import UsageError
    from crystalline.team import make_team

    if isa:
        os.environ["CRYSTALLINE_ISA"] = isa
    try:
        ours = make_team(1).isa
    except UsageError as error:
        raise click.ClickException(f"--isa: {error}") from None
    found = peak.peaks(threads, 0.02 if quick else peak.SECONDS)
    return Settings(threads, samples, quick, ours, found)


def run_group(group: str, s: Any) -> list[Any]:
    """The rows of a group."""
    from compare.contest import geometric_mean
    from compare.workers import Crew

    contests = importlib.import_module(f"compare.{group}").contests(s)
    with Crew(s) as crew:
        rows = [row for contest in contests for row in crew.run(contest)]
    if group == "gemm":
        for precision in s.precisions:
            of = [r for r in rows if r.name.endswith(precision)]
            rows += geometric_mean(group, f"geometric mean, {precision}", of)
    return rows


@click.command()
@click.option("--only", multiple=True, type=click.Choice(GROUPS), help="these groups; all, unsaid")
@click.option("--threads", default=2, type=click.IntRange(1, 1024))
@click.option("--samples", default=5, type=click.IntRange(1), help="of each contender")
@click.option("--isa", type=click.Choice(["avx512", "avx2"]), help="for all; unsaid, the best")
@click.option("--quick", is_flag=True, help="few and small shapes: to see that it runs")
@click.option("--self", "stages", is_flag=True, help="what each stage brings, instead of peers")
@click.option("--json", "to", type=click.Path(path_type=Path, dir_okay=False), help="writes all")
@click.option(
    "--against", type=click.Path(path_type=Path, dir_okay=False),
    help="an earlier --json file: exit status 1 where a ratio got worse by more than 5 %",
)
@click.option("--readme", is_flag=True, help="writes the table into README.md")
def main(
    only: tuple[str, ...], threads: int, samples: int, isa: str | None, quick: bool, stages: bool,
    to: Path | None, against: Path | None, readme: bool,
) -> None:  # fmt: skip
    """Measures in alternation and prints medians and ratios."""
    import peak

    from compare import report
    from compare import stages as self_stages

    if stages and (only or against or readme):
        raise click.UsageError("--self goes with none of --only, --against and --readme")
    before = report.earlier(against) if against else None
    if to:
        report.check_writable(to)
    # A file takes whole lines; a terminal has its own width.
    console = Console(width=None if sys.stdout.isatty() else 160)
    s = settings(threads, samples, quick, isa)
    console.print(peak.table(s.peaks))
    for lacking in s.peaks["left_out"]:
        console.print(f"this CPU lacks {lacking}: left out")
    rows, made = [], []
    if stages:
        made = self_stages.stages(s)
        console.print(self_stages.table(made, s))
    else:
        for group in only or GROUPS:
            rows += (new := run_group(group, s))
            console.print(report.table(group, new))
    if to:
        try:
            to.write_text(json.dumps(report.document(s, rows, made), indent=1) + "\n")
        except OSError as error:
            raise report.unwritable(to, error) from None
    if readme:
        report.write_readme(report.markdown(s, rows))
    if before is not None and (found := report.slower(rows, before)):
        console.print(report.slower_table(found))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
