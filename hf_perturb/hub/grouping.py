"""Collections on the Hub: a matrix of variants in one place."""

from __future__ import annotations

from huggingface_hub import HfApi

from hf_perturb.networks.fetching import retried


def add_to_collection(api: HfApi, repo_id: str, collection: str, private: bool) -> str:
    """Add a repository to a collection; one that is there already is left as it is.

    Args:
        api: the client.
        repo_id: the repository.
        collection: a slug (`namespace/title-0123abcd`), or a title in the namespace of the repository.
        private: whether a collection that is made for it is a private one.

    Returns:
        The slug.
    """
    if "/" not in collection:
        namespace = repo_id.partition("/")[0]
        collection = retried(
            lambda: api.create_collection(collection, namespace=namespace, private=private, exists_ok=True),
            connections=True,
        ).slug
    retried(lambda: api.add_collection_item(collection, repo_id, "model", exists_ok=True), connections=True)
    return collection
