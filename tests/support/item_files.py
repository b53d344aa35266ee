"""Write the items of a dataset in the on-disk contract, without Spark."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import FileEntry, Manifest, write_manifest


def write_items(directory: Path, texts: list[str], rows_per_file: int = 4) -> Manifest:
    """items/ and manifest.json of a dataset whose item i has `texts[i - 1]`."""
    entries = []
    for part, start in enumerate(range(0, len(texts), rows_per_file)):
        rows = texts[start : start + rows_per_file]
        path = directory / "items" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        index = pa.array(range(start + 1, start + 1 + len(rows)), pa.int64())
        pq.write_table(pa.table({"item_index": index, "text": rows}), path)
        size, digest = path.stat().st_size, storage.sha256(str(path))
        entries.append(
            FileEntry(path=f"items/{path.name}", rows=len(rows), bytes=size, sha256=digest, first_index=start + 1)
        )
    manifest = Manifest(counts={"items": len(texts)}, parameters={}, groups={"items": entries})
    write_manifest(str(directory), manifest)
    return manifest


def publish_items(root: Path, texts: list[str], rows_per_file: int = 4) -> Path:
    """A new version of a dataset with these items; returns its directory."""
    version = versions.next_id(str(root))
    directory = Path(versions.version_url(str(root), version))
    write_items(directory, texts, rows_per_file)
    versions.publish(str(root), version, versions.current(str(root)))
    return directory
