import re
from pathlib import Path

from datasets import Dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from pyarrow import ArrowException

from ..errors import InputError
from .embedded import embedded_dataset


FILE_TYPES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
EMBEDDED = "embedded:"

# Sub-folders with splits or shards of one data set, as Hub repositories have them; any other is a configuration.
_SPLIT_FOLDERS = {"data", "train", "training", "test", "testing", "eval", "validation", "valid", "dev"}

_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLIT_WORDS |= {"evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_WORDS |= {"dev": "validation", "unsupervised": "unsupervised"}

# Where a local copy does not bear its Hub id's last component: (name, configuration) and (name, split) on the Hub.
_LOCAL_CONFIGS = {("wikitext", "wikitext-2-raw-v1"): "wikitext2", ("wikitext", "wikitext-2-v1"): "wikitext2"}
_LOCAL_SPLITS = {("imdb", "unsupervised"): ("imdb_unsupervised", "train")}


def resolve_dataset(
    spec: str, *, config: str | None = None, split: str = "train", data_root: str | Path | None = None
) -> Dataset:
    """
    Finds one split of a data set. No code that comes with a data set is ever run.

    Args:
        spec (`str`):
            A local folder (its files, or those of a configuration's sub-folder, are the splits: `train.parquet`,
            `test.csv`, …), a local Parquet, JSON, JSON Lines or CSV file (one split, `train`), a Hub id
            (`"stanfordnlp/imdb"`) or `"embedded:NAME"`. What exists locally goes before the Hub.
        config (`str`, *optional*): the configuration, where the data set has several.
        split (`str`, *optional*, defaults to `"train"`): name of the split; except for embedded data sets a part as in
            `"train[:80%]"` is allowed.
        data_root (`str` or `Path`, *optional*):
            Folder with local copies of Hub data sets, each in a folder named as the id's last component, or with `_`
            in place of `-` (`fancyzhx/yelp_polarity` is `yelp_polarity`, `zalando-datasets/fashion-mnist` is
            `fashion_mnist`). If given, the Hub is not asked.

    Returns:
        `datasets.Dataset`: with the types of its columns (class names, images) as stored.

    Raises:
        [`InputError`]: there is no such data set, configuration or split (the message lists what there is), a file
            cannot be read, or the Hub cannot be reached.
    """
    if spec.startswith(EMBEDDED):
        splits = embedded_dataset(spec.removeprefix(EMBEDDED))
        _check_split(spec, split, list(splits))
        return splits[split]
    local = Path(spec).expanduser()
    if local.is_dir():
        return _from_folder(spec, local, config, split)
    if local.is_file():
        return _from_file(spec, local, split)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", spec) or local.suffix in FILE_TYPES:
        raise InputError(f"dataset={spec!r} does not exist: give a folder or file that does, or a Hub id.")
    if data_root is not None:
        return _from_folder(spec, *_local_copy(spec, config, split, Path(data_root).expanduser()))
    return _load(spec, spec, config, split)


def _local_copy(spec: str, config: str | None, split: str, root: Path) -> tuple[Path, str | None, str]:
    if not root.is_dir():
        raise InputError(f"data_root={str(root)!r} is not a folder: give the folder that holds the data sets.")
    name = spec.split("/")[-1]
    # Most repositories on the Hub have a single configuration, which a local copy has no need to name.
    own = None if config in ("default", "plain_text", name) else config
    candidates = [(spec, own, split), (name, own, split), (name.replace("-", "_"), own, split)]
    if (name, config) in _LOCAL_CONFIGS:
        candidates.insert(0, (_LOCAL_CONFIGS[name, config], None, split))
    if (name, split) in _LOCAL_SPLITS:
        folder, local_split = _LOCAL_SPLITS[name, split]
        candidates.insert(0, (folder, own, local_split))
    for folder, local_config, local_split in candidates:
        if (root / folder).is_dir():
            return root / folder, local_config, local_split
    there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "no folder"
    sought = spec if config is None else f"{spec} ({config})"
    raise InputError(f"dataset={sought!r} is not in data_root={str(root)!r}, which holds {there}.")


def _from_folder(spec: str, folder: Path, config: str | None, split: str) -> Dataset:
    configurations = sorted(path.name for path in folder.iterdir() if path.is_dir() and _data_files(path))
    configurations = [name for name in configurations if name not in _SPLIT_FOLDERS]
    if config in configurations:
        return _from_files(spec, folder / config, split)
    if configurations and not _data_files(folder):
        problem = "holds several configurations" if config is None else f"has no configuration {config!r}"
        raise InputError(f"dataset={spec!r} {problem}: give config, one of {', '.join(configurations)}.")
    return _from_files(spec, folder, split) if config is None else _load(spec, str(folder), config, split)


def _from_files(spec: str, folder: Path, split: str) -> Dataset:
    files = sorted(_data_files(folder))
    types = {FILE_TYPES[file.suffix] for file in files}
    if len(types) != 1:
        # Split folders, or mixed types: datasets' own rules.
        return _load(spec, str(folder), None, split)
    # datasets would look for split names in the whole path, so that a folder below `my-tests/` had nothing but a test
    # split: here the file's own name decides.
    named: dict[str, list[str]] = {split: [] for split in dict.fromkeys(_SPLIT_WORDS.values())}
    for file in files:
        word = re.match(r"[A-Za-z]*", file.stem)[0].lower()
        if word in _SPLIT_WORDS:
            named[_SPLIT_WORDS[word]].append(str(file))
    named = {split: paths for split, paths in named.items() if paths}
    return _load(spec, types.pop(), None, split, data_files=named or {"train": [str(file) for file in files]})


def _data_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in FILE_TYPES]


def _from_file(spec: str, file: Path, split: str) -> Dataset:
    if file.suffix not in FILE_TYPES:
        raise InputError(f"dataset={spec!r} has an unknown file type: give one of {', '.join(FILE_TYPES)}.")
    return _load(spec, FILE_TYPES[file.suffix], None, split, data_files={"train": str(file)})


def _load(spec: str, source: str, config: str | None, split: str, data_files: dict | None = None) -> Dataset:
    try:
        builder = load_dataset_builder(source, config, data_files=data_files)
        builder.download_and_prepare()
    except DatasetNotFoundError as error:
        raise InputError(
            f"dataset={spec!r} is not on the Hub, or is private or gated: check the id, log in (`hf auth login`) or "
            f"give a local folder."
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise InputError(
            f"dataset={spec!r} cannot be had from the Hub ({_one_line(error)}): give --set data_root=FOLDER with a "
            f"local copy, or a local folder as the data set."
        ) from error
    except (FileNotFoundError, DatasetsError, ArrowException) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        # A full disk or a cache that cannot be written is not the data's fault.
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from None
        raise InputError(
            f"dataset={spec!r} cannot be read ({_one_line(cause)}): give valid Parquet, JSON, JSON Lines or CSV files."
        ) from error
    except ValueError as error:
        raise InputError(f"dataset={spec!r}, config={config!r}: {_one_line(error)}") from error
    _check_split(spec, split, list(builder.info.splits))
    try:
        return builder.as_dataset(split)
    except (ValueError, AssertionError) as error:
        raise InputError(f"split={split!r} of dataset={spec!r}: {_one_line(error)}") from error


def _check_split(spec: str, split: str, available: list[str]) -> None:
    wanted = [part.split("[")[0].strip() for part in split.split("+")]
    if any(part not in available for part in wanted):
        raise InputError(f"split={split!r} does not exist in dataset={spec!r}: it has {', '.join(available)}.")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
