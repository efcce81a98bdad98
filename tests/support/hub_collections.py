"""What the Hub answers about collections."""

from __future__ import annotations

from support.hub_calls import Answer, Call, answer, route
from support.hub_repos import Collection, HubError


def _shown(call: Call, collection: Collection) -> dict:
    """Describe a collection; repositories that the user may not know of are left out."""
    items = []
    for position, item in enumerate(collection.items):
        repo = call.hub.store.repos.get(item["id"])
        hidden = repo is not None and repo.private and not (call.user and call.user.owns(repo.owner))
        if not hidden:
            note = {"note": {"html": item["note"], "text": item["note"]}} if item.get("note") else {}
            items.append(
                {"_id": f"{position:024x}", "id": item["id"], "type": item["type"], "position": position} | note
            )
    return {
        "slug": collection.slug,
        "title": collection.title,
        "owner": {"name": collection.namespace},
        "items": items,
        "lastUpdated": "2026-01-01T00:00:00.000Z",
        "position": 0,
        "private": collection.private,
        "theme": "green",
        "upvotes": 0,
    }


def _visible(call: Call, collection: Collection) -> bool:
    return not collection.private or (call.user is not None and call.user.owns(collection.namespace))


def _found(call: Call) -> Collection:
    collection = call.hub.store.collections.get(call.parts["slug"])
    if collection is None or not _visible(call, collection):
        raise HubError(404, "Collection not found")
    return collection


@route("POST", "/api/collections", "collection")
def create(call: Call) -> Answer:
    data = call.data
    call.owner(data["namespace"])
    return answer(_shown(call, call.hub.store.collect(data["namespace"], data["title"], data.get("private", False))))


@route("GET", "/api/collections", "collection")
def listed(call: Call) -> Answer:
    collections = [one for one in call.hub.store.collections.values() if _visible(call, one)]
    owner = call.query.get("owner")
    shown = [_shown(call, one) for one in collections if owner in (None, one.namespace)]
    return answer([{name: value for name, value in one.items() if name != "position"} for one in shown])


@route("GET", "/api/collections/{slug}", "collection")
def show(call: Call) -> Answer:
    return answer(_shown(call, _found(call)))


@route("DELETE", "/api/collections/{slug}", "collection")
def delete(call: Call) -> Answer:
    collection = _found(call)
    call.owner(collection.namespace)
    del call.hub.store.collections[collection.slug]
    return answer({})


@route("POST", "/api/collections/{slug}/items?", "item")
def add(call: Call) -> Answer:
    collection, data = _found(call), call.data
    call.owner(collection.namespace)
    item = {**data["item"], "note": data.get("note")}
    if item["type"] == "model":
        call.parts["id"] = item["id"]
        call.readable()
    if any((one["id"], one["type"]) == (item["id"], item["type"]) for one in collection.items):
        raise HubError(409, "This item is in the collection already")
    collection.items.append(item)
    return answer(_shown(call, collection))
