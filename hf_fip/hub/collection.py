"""The Collection of a family: found again or made, its items in the order of the path, with notes."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import Collection

from ..errors import InputError
from .client import Hub


DESCRIPTION = "Models along functionally invariant paths, each made from another: a model graph recorded with hf_fip."


def check_same_family(found: Collection, ours: set[str]) -> None:
    """
    Raises:
        `InputError`: a Collection that was found by its title holds models, but none of ours.
    """
    theirs = {item.item_id for item in found.items if item.item_type == "model"}
    if theirs and not theirs & ours:
        raise InputError(
            f"collection={found.title!r}: there is a Collection of this title with other models "
            f"({sorted(theirs)[0]}, …); give another title"
        )


def models_of(collection: Collection) -> set[str]:
    """The repositories in a Collection."""
    return {item.item_id for item in collection.items if item.item_type == "model"}


def update_items(hub: Hub, collection: Collection, notes: Mapping[str, str]) -> None:
    """
    Makes notes and order of a Collection's items what they should be. Items that the user added keep their places.

    Args:
        hub (`Hub`): the Hub.
        collection (`Collection`): as it is now.
        notes (`Mapping[str, str]`): repository to note, in order.
    """
    items = {item.item_object_id: item for item in collection.items}
    place = {repo: number for number, repo in enumerate(notes)}
    ours = [key for key, item in items.items() if item.item_type == "model" and item.item_id in place]
    for key in ours:
        if (items[key].note or "") != notes[items[key].item_id]:
            hub.update_item(collection.slug, key, note=notes[items[key].item_id])
    ordered = iter(sorted(ours, key=lambda key: place[items[key].item_id]))
    wanted = [next(ordered) if key in ours else key for key in items]
    current = list(items)
    for position, key in enumerate(wanted):
        if current[position] != key:
            hub.update_item(collection.slug, key, position=position)
            current.remove(key)
            current.insert(position, key)
