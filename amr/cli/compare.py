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
    parser.add_argument("--csv", metavar="FILE.csv", help="also write the table with unrounded numbers")
    parser.add_argument("--latex", metavar="FILE.tex", help="also write the table for LaTeX's package booktabs")
    parser.add_argument("--md", metavar="FILE.md", help="also write the table in Markdown")
    parser.add_argument("--split", choices=("test", "val"), help="the split (test if every run was tested, else val)")
    parser.add_argument("--sort", choices=("method", "acc", "mAP"), default="method", help="rows' order (%(default)s)")
    parser.add_argument(
        "--baseline", default="naive", metavar="METHOD", help="the method to compare with (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from amr.report import compare

    options = {name: getattr(args, name) for name in ("picture", "csv", "latex", "md", "split", "sort", "baseline")}
    print(compare(args.runs, args.out, **options))
    files = {"Page": args.out, "Picture": args.picture, "CSV": args.csv, "LaTeX": args.latex, "Markdown": args.md}
    print("\n" + "\n".join(f"{name}: {file}" for name, file in files.items() if file))
    return 0
