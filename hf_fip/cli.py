"""The command line, `hf-fip COMMAND`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError
from .hub.options import (
    PULL_DESCRIPTION,
    PULL_EXAMPLES,
    PUSH_DESCRIPTION,
    PUSH_EXAMPLES,
    add_pull_options,
    add_push_options,
)
from .interrupts import Interrupts
from .recipes.loader import builtin_recipes, load_recipe
from .recipes.summary import summary
from .version import __version__


OK, FAILED, BAD_INPUT = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        argv (`list[str]`, *optional*): The arguments; by default the process's.

    Returns:
        `int`: the exit code: 0 on success, 1 for a failed or interrupted run, 2 for bad input.
    """
    with Interrupts() as interrupts:
        args = None
        try:
            args = _parser().parse_args(argv)
            args.debug = args.debug or os.environ.get("HF_FIP_DEBUG", "0") not in ("", "0")
            return _end_process(_execute(args))
        except KeyboardInterrupt:
            interrupts.stop()
        except Exception as error:
            # The last resort: whatever failed, a user reads one line (`--debug`: the traceback), and a script an exit
            # code. Libraries make errors of their own of an interruption in their midst.
            if not interrupts.requested:
                return _explain(error, args is not None and args.debug)
            interrupts.stop()
        return _fail(FAILED, "interrupted; run the same command again to continue")


def _execute(args: argparse.Namespace) -> int:
    if args.command is None:
        _parser().print_help(sys.stderr)
        return BAD_INPUT
    with _stdout_for_results_only(args.debug):
        _set_verbosity(args.debug)
        text = args.command(args)
    if text is None:
        # Of several processes the first one speaks.
        return OK
    try:
        print(text, flush=True)
    except OSError as error:
        # What could not be written would be tried again, and complained of again, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            raise
        # The reader of our output has left, as in `hf-fip show … | head`.
        return FAILED
    return args.exit_code


def _end_process(code: int) -> int:
    """
    Ends one of a launcher's processes at once, without the interpreter's own end: a thread of gloo may still hold a
    tensor of the last barrier, wants the interpreter's lock to free it, and aborts a process that is ending.
    """
    if "WORLD_SIZE" in os.environ:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, InputError):
        return _fail(BAD_INPUT, f"error: {_one_line(error)}")
    if _is_disk_full(error):
        return _fail(FAILED, "error: no space left on the disk; make room and run the same command again to continue")
    return _fail(FAILED, f"error: {_one_line(error)}{'' if debug else ' (--debug shows where)'}")


def _run(args: argparse.Namespace) -> str:
    # Threads that wait by spinning take the cores from each other: on a busy machine a run is several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    recipe = load_recipe(args.recipe, args.overrides)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    from .recipes.runner import run

    if not args.debug:
        # A bar for each file of each node says nothing; one for a download from the Hub does.
        disable_progress_bar()
        if sys.stderr.isatty():
            enable_progress_bars()
    result = run(recipe, args.output_dir)
    return _json(result) if args.json else summary(result)


def _show(args: argparse.Namespace) -> str:
    from .graph import describe, render_tree

    graph = _graph(args.graph)
    return _json(describe(graph)) if args.json else render_tree(graph)


def _push(args: argparse.Namespace) -> str:
    from .hub.command import run_push

    text, complete = run_push(_local_graph(args.graph), args)
    args.exit_code = OK if complete else FAILED
    return text


def _pull(args: argparse.Namespace) -> str:
    from .hub.command import run_pull

    return run_pull(args)


def _report(args: argparse.Namespace) -> str:
    from .report import write_report

    graph = _local_graph(args.graph)
    recipe = graph.folder.parent / "recipe.yaml"
    report = write_report(graph, args.output, recipe=recipe.read_text("utf-8") if recipe.is_file() else None)
    return _json({"report": str(report)}) if args.json else f"report  {report}"


def _query(args: argparse.Namespace) -> str | None:
    from .query.command import run_query

    return run_query(_graph(args.graph), args)


def _graph(name: str) -> Any:
    """The graph in a folder, or on the Hub if there is no such folder."""
    from .hub.command import open_graph

    return open_graph(name)


def _local_graph(folder: str) -> Any:
    """The graph in `folder`, or in the folder `graph` below it: what `run` was given as `--output_dir` will do."""
    from .graph import ModelGraph

    inner = Path(folder).expanduser() / "graph"
    return ModelGraph.load(inner if inner.is_dir() else folder)


def _json(data: Any) -> str:
    return json.dumps(data, allow_nan=False)


@contextlib.contextmanager
def _stdout_for_results_only(debug: bool) -> Iterator[None]:
    """
    Keeps standard output clean: what libraries print there, from Python or below it, goes to standard error. On a
    terminal the prints, Trainer's rows of numbers, are dropped: its progress bar says what people need.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
            output = os.dup(1)
            stack.callback(os.close, output)
            os.dup2(2, 1)
            stack.callback(os.dup2, output, 1)
        is_dropped = sys.stderr is not None and sys.stderr.isatty() and not debug
        others = stack.enter_context(open(os.devnull, "w")) if is_dropped else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(others))
        yield


def _set_verbosity(debug: bool) -> None:
    """One line per stage and, on a terminal, progress bars; the libraries' own talk only with `--debug`."""
    handler = _AboveTheBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("hf_fip")
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    if debug:
        return
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"hf_fip\.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if sys.stderr.isatty():
        # Trainer shows its bar where the level of this one logger lets warnings pass.
        logging.getLogger("transformers.training_args").setLevel(logging.WARNING)
    else:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


class _AboveTheBars(logging.Handler):
    """Prints to standard error without cutting a progress bar in two."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # Bars that were never closed leave their last line behind.
        erase = "\r\x1b[K" if sys.stderr.isatty() else ""
        with contextlib.suppress(Exception):
            tqdm.write(f"{erase}{self.format(record)}", file=sys.stderr)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; not every library that writes raises `OSError`."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if not isinstance(error, (ValueError, OSError)) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 1000 else f"{text[:1000]}…"


def _fail(code: int, message: str) -> int:
    print(f"hf-fip: {message}", file=sys.stderr, flush=True)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"hf-fip: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    recipes = "\n".join(f"  {name:<15} {description}" for name, description in builtin_recipes().items())
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    common.add_argument("--debug", action="store_true", help="show the libraries' messages, and tracebacks of errors")
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter, "parents": [common]}

    parser = _Parser(
        prog="hf-fip",
        description="Families of models along functionally invariant paths: learn more without forgetting.",
        epilog=f"built-in recipes:\n{recipes}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hf-fip {__version__}")
    parser.set_defaults(command=None, debug=False, exit_code=OK)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    run = commands.add_parser(
        "run",
        help="train what a recipe describes and record it as a model graph",
        description="Trains what a recipe describes. Every path point becomes a node of the graph in DIR/graph:\n"
        "a complete model that from_pretrained loads. Run again on the same folder, it continues\nwhere it stopped.",
        epilog=f"built-in recipes:\n{recipes}\n\n{_RUN_EXAMPLES}",
        **layout,
    )
    run.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a built-in recipe")
    run.add_argument(
        "--output_dir",
        "--output-dir",
        metavar="DIR",
        help="folder for graph, report and recipe (default: outputs/RECIPE, with the seed where it is not 0)",
    )
    run.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change a key of the recipe: a dotted path and a value in YAML; may be given often",
    )
    run.set_defaults(command=_run)

    show = commands.add_parser(
        "show",
        help="print a graph as a tree with its metrics",
        description="Prints the nodes of a graph as a tree, with their metrics and functional distances.",
        epilog="examples:\n  hf-fip show outputs/demo\n  hf-fip show me/yelp-to-imdb-64f9a55bb3115b4f513ec026",
        **layout,
    )
    show.add_argument("graph", metavar="GRAPH", help="a graph's folder, the --output_dir of a run, or a Collection")
    show.set_defaults(command=_show)

    from .query.options import add_query_options

    question = commands.add_parser(
        "query",
        help="rank a graph's models by how well they suit a data set",
        description="Ranks the models of a graph by how well they suit a data set: which node should I take?",
        epilog=_QUERY_EXAMPLES,
        **layout,
    )
    add_query_options(question)
    question.set_defaults(command=_query)

    report = commands.add_parser(
        "report",
        help="write the HTML report of a graph",
        description="Writes the report of a graph: one self-contained HTML file.",
        epilog="example:\n  hf-fip report outputs/demo --output report.html",
        **layout,
    )
    report.add_argument("graph", metavar="GRAPH", help="a graph's folder, or the --output_dir of a run")
    report.add_argument("--output", metavar="FILE", help="the file to write (default: report.html beside the graph)")
    report.set_defaults(command=_report)

    push = commands.add_parser(
        "push", help="publish a graph on the Hub", description=PUSH_DESCRIPTION, epilog=PUSH_EXAMPLES, **layout
    )
    add_push_options(push)
    push.set_defaults(command=_push)

    pull = commands.add_parser(
        "pull", help="download a family from the Hub", description=PULL_DESCRIPTION, epilog=PULL_EXAMPLES, **layout
    )
    add_pull_options(pull)
    pull.set_defaults(command=_pull)
    return parser


_EXAMPLES = """\
examples:
  hf-fip run demo                           two minutes on a laptop: a second task, the first one kept
  hf-fip show outputs/demo                  the graph it made
  hf-fip run my_recipe.yaml --set seed=1    your own recipe, with one key changed

hf-fip COMMAND --help says more about each command."""

_RUN_EXAMPLES = """\
examples:
  hf-fip run demo --output_dir out
  hf-fip run demo --set path_points=2 --set baselines=[naive,joint]
  hf-fip run yelp_imdb --set data_root=../data --set model=embedded:bert-mini --json > result.json
  hf-fip run yelp_imdb --set training.learning_rate=2e-5 tasks.imdb.max_train=2000"""

_QUERY_EXAMPLES = """\
examples:
  hf-fip query outputs/demo --dataset embedded:films
  hf-fip query outputs/demo --dataset reviews.csv --text_column body --metric accuracy --top 3
  hf-fip query USER/COLLECTION --dataset stanfordnlp/imdb --max_samples 1000 --strategy racing --json
  accelerate launch -m hf_fip query GRAPH --dataset wikitext --config wikitext-2-raw-v1"""


if __name__ == "__main__":
    sys.exit(main())
