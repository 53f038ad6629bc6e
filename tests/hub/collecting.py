"""Routes of Collections."""

from __future__ import annotations

import hashlib

from .exchange import HubError, Reply, Request, answer, now, route
from .storage import Collection, Item


LISTED_ITEMS = 4
TITLE, DESCRIPTION, NOTE = 60, 150, 500
SLUG = r"/api/collections/(?P<slug>[^/]+/[^/]+)"


def _describe(request: Request, collection: Collection, items: int | None = None) -> dict:
    shown = [item for item in collection.items if _may_see(request, item)][:items]
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"type": "user", "name": collection.namespace, "fullname": collection.namespace},
        "private": collection.private,
        "lastUpdated": collection.updated,
        "gating": False,
        "theme": "orange",
        "upvotes": 0,
        "isUpvotedByUser": False,
        "position": 0,
        "items": [
            {
                "_id": item.object_id,
                "id": item.id,
                "type": item.type,
                "position": number,
                **({"note": {"html": item.note, "text": item.note}} if item.note else {}),
            }
            for number, item in enumerate(shown)
        ],
    }


def _may_see(request: Request, item: Item) -> bool:
    """A Collection shows each reader the repositories that he may see."""
    repo = request.hub.storage.repos.get((f"{item.type}s", item.id))
    if item.type not in ("model", "dataset"):
        return True
    return repo is not None and (not repo.private or bool(request.user and request.user.may_read(repo.namespace)))


def _found(request: Request, slug: str, *, write: bool = False) -> Collection:
    collection = request.hub.storage.find_collection(slug)
    user = request.user
    if collection is None or (collection.private and not (user and user.may_read(collection.namespace))):
        raise HubError(404, "Collection not found")
    if write:
        request.writer(collection.namespace)
    return collection


def _limit(name: str, value: str | None, limit: int) -> None:
    if value is not None and len(value) > limit:
        raise HubError(400, f'"{name}" must contain at most {limit} characters')


@route("GET", "/api/collections")
def list_collections(request: Request) -> Reply:
    owners, items, user = request.arguments("owner"), request.arguments("item"), request.user
    found = [
        collection
        for collection in request.hub.storage.collections.values()
        if (not owners or collection.namespace in owners)
        and (not collection.private or (user and user.may_read(collection.namespace)))
        and (not items or any(f"{item.type}s/{item.id}" in items for item in collection.items))
    ]
    shown = [_describe(request, collection, LISTED_ITEMS) for collection in found]
    for description in shown:
        # The client numbers them itself.
        del description["position"]
    return request.page(shown, min(int(request.argument("limit", "100")), request.hub.page_size))


@route("POST", "/api/collections")
def create_collection(request: Request) -> Reply:
    asked = request.json()
    namespace, title = asked.get("namespace") or request.signed_in().name, asked.get("title")
    request.writer(namespace)
    if not title or not isinstance(title, str):
        raise HubError(400, '"title" is required')
    _limit("title", title, TITLE)
    _limit("description", asked.get("description"), DESCRIPTION)
    same = request.hub.storage.titled(namespace, title)
    if same and not request.hub.duplicate_titles:
        raise HubError(409, "A collection with this title exists already", slug=same[0].slug)
    new = request.hub.storage.create_collection(
        namespace, title, asked.get("description"), bool(asked.get("private")), now()
    )
    return answer(_describe(request, new))


@route("GET", SLUG)
def get_collection(request: Request, slug: str) -> Reply:
    return answer(_describe(request, _found(request, slug)))


@route("PATCH", SLUG)
def update_collection(request: Request, slug: str) -> Reply:
    collection = _found(request, slug, write=True)
    asked = request.json()
    _limit("title", asked.get("title"), TITLE)
    _limit("description", asked.get("description"), DESCRIPTION)
    collection.title = asked.get("title", collection.title)
    collection.description = asked.get("description", collection.description)
    collection.private = asked.get("private", collection.private)
    collection.updated = now()
    return answer({"data": _describe(request, collection)})


@route("DELETE", SLUG)
def delete_collection(request: Request, slug: str) -> Reply:
    del request.hub.storage.collections[_found(request, slug, write=True).object_id]
    return answer({})


@route("POST", f"{SLUG}/items")
def add_item(request: Request, slug: str) -> Reply:
    collection = _found(request, slug, write=True)
    asked = request.json()
    kind, name = asked["item"]["type"], asked["item"]["id"]
    _limit("note", asked.get("note"), NOTE)
    if kind in ("model", "dataset"):
        request.repo(f"{kind}s", name)
    if any((item.type, item.id) == (kind, name) for item in collection.items):
        raise HubError(409, "Item is already in collection")
    object_id = hashlib.sha256(f"{collection.object_id}/{kind}/{name}".encode()).hexdigest()[:24]
    collection.items.append(Item(object_id, name, kind, asked.get("note")))
    collection.updated = now()
    return answer(_describe(request, collection))


def _item(request: Request, slug: str, item_id: str) -> tuple[Collection, Item]:
    collection = _found(request, slug, write=True)
    item = next((item for item in collection.items if item.object_id == item_id), None)
    if item is None:
        raise HubError(404, "Item not found")
    return collection, item


@route("PATCH", rf"{SLUG}/items/(?P<item_id>\w+)")
def update_item(request: Request, slug: str, item_id: str) -> Reply:
    collection, item = _item(request, slug, item_id)
    asked = request.json()
    _limit("note", asked.get("note"), NOTE)
    item.note = asked.get("note", item.note)
    if "position" in asked:
        collection.items.remove(item)
        collection.items.insert(asked["position"], item)
    return answer({})


@route("DELETE", rf"{SLUG}/items/(?P<item_id>\w+)")
def delete_item(request: Request, slug: str, item_id: str) -> Reply:
    collection, item = _item(request, slug, item_id)
    collection.items.remove(item)
    return answer({})
