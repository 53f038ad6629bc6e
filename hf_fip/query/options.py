"""The command line options of `hf-fip query`; nothing heavy is imported here."""

from __future__ import annotations

import argparse


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""

    def option(name: str, **settings) -> None:
        hyphened = name.replace("_", "-")
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{hyphened}")), **settings)

    parser.add_argument("graph", metavar="GRAPH", help="a graph's folder, the --output_dir of a run, or a Collection")
    option("dataset", metavar="SPEC", required=True, help="Hub id, local folder or file, or embedded:NAME")
    option("config", metavar="C", help="the data set's configuration")
    option("split", metavar="S", help="its split (default: the first of test, validation, train)")
    option("text_column", metavar="C", help="its column of texts or images (default: found by its name)")
    option("label_column", metavar="C", help="its column of labels (default: found by its name)")
    option("data_root", metavar="DIR", help="folder with local copies of Hub data sets")
    option("max_samples", metavar="N", type=int, help="most examples, a random sample (default: all)")
    option(
        "metric",
        default="perplexity",
        help="perplexity, accuracy, f1, precision, recall, matthews_correlation, functional_distance:NODE, "
        "functional_distance:NODE:kl, functional_distance:NODE:changed_predictions, or a metric of evaluate "
        "(default: perplexity)",
    )
    option(
        "strategy",
        default="full",
        metavar="full|racing",
        help="racing finds the best node and drops the others early (default: full)",
    )
    option("confidence", metavar="P", type=float, default=0.95, help="of a race's tests (default: 0.95)")
    option("budget", metavar="SHARE", type=float, default=0.2, help="of the full work for a race (default: 0.2)")
    option("top", metavar="K", type=int, help="show the K best only")
    option("nodes", metavar="NODE", nargs="+", help="query these nodes or branches only")
    option("batch_size", metavar="N", type=int, default=32, help="examples of the longest batch (default: 32)")
    option("max_length", metavar="N", type=int, help="most tokens of a text (default: 512 or what the models read)")
    option("seed", metavar="N", type=int, default=0, help="of the sample, the masks and the race (default: 0)")
    option("output", metavar="FILE", help="save the result (default: GRAPH/queries/NAME.json, which the report shows)")
