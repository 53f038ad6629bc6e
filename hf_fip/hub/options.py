"""The command line options of `hf-fip push` and `hf-fip pull`; nothing heavy is imported here."""

from __future__ import annotations

import argparse


PUSH_DESCRIPTION = """\
Publishes a graph on the Hugging Face Hub: a model repository per node, whose cards tell the lineage, and a Collection
that holds the family. Run again, it publishes what is missing or new, and nothing twice, however the run before ended.
Log in with `hf auth login` or set HF_TOKEN; HF_ENDPOINT names another Hub."""

PUSH_EXAMPLES = """\
examples:
  hf-fip push outputs/demo --namespace me --dry-run          what would be published: nothing is changed
  hf-fip push outputs/demo --namespace me --collection "yelp to imdb" --private
  hf-fip push outputs/demo --namespace me --select every:5   the root, every 5th node, and the ends of the branches"""

PULL_DESCRIPTION = """\
Downloads a family from the Hub into a folder, as a graph like one that `hf-fip run` makes. Run again after an
interruption, it continues. Collections that hf_fip did not make can be pulled too."""

PULL_EXAMPLES = """\
examples:
  hf-fip pull me/yelp-to-imdb-64f9a55bb3115b4f513ec026 family
  hf-fip pull https://huggingface.co/me/yelp-to-imdb-base family     the family that a model is part of"""


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `push` to its parser."""
    parser.add_argument("graph", metavar="DIR", help="a graph's folder, or the --output_dir of a run")
    parser.add_argument("--namespace", metavar="NS", help="user or organisation (default: yourself)")
    parser.add_argument(
        "--collection",
        metavar="TITLE",
        help="title of the Collection, to which the repositories' names follow (default: made of the folder's name)",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="hide repositories and Collection from others (default: what your account is set to)",
    )
    parser.add_argument(
        "--select",
        default="all",
        metavar="all|endpoints|every:N",
        help="which nodes; roots and the ends of branches always are among them (default: all)",
    )
    parser.add_argument(
        "--layout",
        default="repo",
        metavar="repo|revision",
        help="repo: a repository per node; revision: one per branch, with a tag per node (default: repo)",
    )
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print repositories, requests and bytes; change nothing"
    )


def add_pull_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `pull` to its parser."""
    parser.add_argument("source", metavar="COLLECTION", help="a Collection, a model in it, or the address of either")
    parser.add_argument("folder", metavar="DIR", help="the graph's folder: a new one, or that of an earlier pull")
