"""Finds a recipe, applies its variants and the user's overrides, and has it checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from . import checks
from .document import Document, apply_override, dotted, read
from .schema import Recipe
from .validation import KEYS, VARIANTS, parse_recipe


_BUILTIN = Path(__file__).parent / "builtin"


def builtin_recipes() -> dict[str, str]:
    """The names of the built-in recipes and the line that describes each; imports nothing heavy."""
    found = {path.stem: read(path).data for path in sorted(_BUILTIN.glob("*.yaml"))}
    return {name: str(data.get("description", "")) for name, data in found.items()}


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """
    Loads a recipe.

    A recipe may hold `variants`: for values of `model`, settings that fit that model better. They are applied to the
    recipe before the overrides.

    Args:
        name_or_file (`str` or `Path`): The name of a built-in recipe, or a YAML file.
        overrides (iterable of `str`, *optional*):
            `key=value` each: a dotted path and a value in YAML, such as `training.epochs=1` or `baselines=[naive]`.

    Returns:
        `Recipe`: the checked recipe.

    Raises:
        `InputError`: for a recipe that does not exist and for anything in it, or in an override, that does not fit;
            with the file, the line and the key.
    """
    document, name = _find(str(name_or_file))
    if not isinstance(document.data, dict):
        raise InputError(
            f"{document.name}: a recipe is a mapping of keys to values, not {checks.shown(document.data)}"
        )
    overrides = list(overrides)
    variants = _take_variants(document)
    for variant in variants.data:
        # A mistake in a variant is told to whoever uses the recipe, not only to whoever uses that variant.
        _check_keys(variants, variant)
    resolved = document.copy()
    for override in overrides:
        apply_override(resolved, override)
    if VARIANTS in resolved.data:
        raise InputError("--set variants…: variants belong in the recipe's file; set the keys themselves")
    model = resolved.data.get("model")
    if isinstance(model, str) and model in variants.data:
        document.merge(variants, (model,))
        for override in overrides:
            apply_override(document, override)
    else:
        document = resolved
    return parse_recipe(document, name)


def _find(name: str) -> tuple[Document, str]:
    builtin = _BUILTIN / f"{name}.yaml"
    if builtin.parent == _BUILTIN and builtin.is_file():
        return read(builtin, f"built-in recipe {name}.yaml"), name
    path = Path(name).expanduser()
    if path.is_file():
        return read(path, name), path.stem
    if path.suffix in (".yaml", ".yml") or path.is_dir():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(
            f"recipe {name}: {what}; give a YAML file or a built-in recipe: {', '.join(builtin_recipes())}"
        )
    raise InputError(checks.unknown("recipe", name, builtin_recipes(), listed=_listed()))


def _listed() -> str:
    return f"{', '.join(builtin_recipes())}, or a YAML file"


def _take_variants(document: Document) -> Document:
    """The recipe's variants as a document of their own, with the lines they have in the file."""
    path = (VARIANTS,)
    variants = document.data.pop(VARIANTS, None) or {}
    sources = {key[1:]: source for key, source in document.sources.items() if key[:1] == path and key != path}
    document.sources = {key: source for key, source in document.sources.items() if key[:1] != path}
    taken = Document(document.name, variants, sources)
    if not isinstance(variants, dict) or not all(isinstance(value, dict) for value in variants.values()):
        raise taken.error((), "'variants' must be a mapping from values of 'model' to keys of the recipe")
    return taken


def _check_keys(variants: Document, variant: str) -> None:
    known = [key for key in KEYS if key not in ("name", "model")]
    for key in variants.data[variant]:
        if key not in known:
            path = (variant, key)
            raise variants.error(path, checks.unknown("key", key, known, dotted((VARIANTS, variant))))
