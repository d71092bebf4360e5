"""`amr compare`: a table and a page from finished runs."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `compare`'s arguments to a parser."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder (amr's, W&B's or Lightning's CSVLogger's), a folder of runs, a results.parquet, or a glob",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="the page (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE.png", help="also write the two main plots as a PNG")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from amr.report import compare

    print(compare(args.runs, args.out, args.picture))
    print(f"\nPage: {args.out}" + (f"\nPicture: {args.picture}" if args.picture else ""))
    return 0
