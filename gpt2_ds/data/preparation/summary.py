"""What a preparation made, in words."""

from __future__ import annotations

from pathlib import Path

from gpt2_ds.data.format.manifest import Manifest


def summary(manifest: Manifest, path: Path | str) -> list[str]:
    """Lines for the user: tokens a split, what was left out and where, and what to do next.

    Args:
        manifest: of the dataset.
        path: of the dataset.
    """
    lines = []
    for split in ("train", "validation"):
        shards = [shard for shard in manifest.shards if shard.split == split]
        tokens, documents = sum(s.tokens for s in shards), sum(s.documents for s in shards)
        lines.append(f"{split}: {tokens:,} tokens, {documents:,} documents, {len(shards)} shards")
    if manifest.source is not None:
        if manifest.source.duplicates is not None:
            lines.append(f"duplicates left out: {manifest.source.duplicates:,}")
        for why, skipped in manifest.source.skipped.items():
            places = "; ".join(skipped.first)
            more = "; ..." if skipped.count > len(skipped.first) else ""
            lines.append(f"skipped: {skipped.count:,} {why} ({places}{more})")
    lines.append(
        f"{path} is ready. Next: set data.path to {path} in a recipe of recipes/, then\n"
        "  deepspeed launch/train.py --recipe recipes/RECIPE.yaml"
    )
    return lines
