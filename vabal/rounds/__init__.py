"""Rounds: what one is begun with, its manifest, and its publication. The steps are modules beside these."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.rounds.latest import newest_tag, refuse_older_checkout, require_newest
    from vabal.rounds.manifests import (
        FIRST_VERSION,
        MANIFEST_VERSION,
        Manifest,
        derive_seed,
        describe_files,
        head,
        manifest_numbers,
        number_of,
        read_manifest,
        round_folder,
        tag_name,
    )
    from vabal.rounds.moves import is_withdrawn, reading
    from vabal.rounds.opened import OpenRound, give_up, keep, open_round, reopen
    from vabal.rounds.plans import Plan, pending_publication
    from vabal.rounds.publication import carry_out, refuse_overtaken, stage
    from vabal.rounds.versions import Overtaken

__all__ = [
    "FIRST_VERSION",
    "MANIFEST_VERSION",
    "Manifest",
    "OpenRound",
    "Overtaken",
    "Plan",
    "carry_out",
    "derive_seed",
    "describe_files",
    "give_up",
    "head",
    "is_withdrawn",
    "keep",
    "manifest_numbers",
    "newest_tag",
    "number_of",
    "open_round",
    "pending_publication",
    "read_manifest",
    "reading",
    "refuse_older_checkout",
    "refuse_overtaken",
    "reopen",
    "require_newest",
    "round_folder",
    "stage",
    "tag_name",
]

__getattr__ = members(
    __name__,
    {
        "latest": (
            "newest_tag",
            "refuse_older_checkout",
            "require_newest",
        ),
        "manifests": (
            "FIRST_VERSION",
            "MANIFEST_VERSION",
            "Manifest",
            "derive_seed",
            "describe_files",
            "head",
            "manifest_numbers",
            "number_of",
            "read_manifest",
            "round_folder",
            "tag_name",
        ),
        "moves": (
            "is_withdrawn",
            "reading",
        ),
        "opened": (
            "OpenRound",
            "give_up",
            "keep",
            "open_round",
            "reopen",
        ),
        "plans": (
            "Plan",
            "pending_publication",
        ),
        "publication": (
            "carry_out",
            "refuse_overtaken",
            "stage",
        ),
        "versions": ("Overtaken",),
    },
)
