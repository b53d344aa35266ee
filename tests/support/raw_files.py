"""Raw inputs of a few users, as CSV."""

from pathlib import Path


def write_raw(folder: Path, unreadable: int = 0) -> None:
    """40 users with 6 events each, the last `unreadable` without a time, and 20 items."""
    events = [(f"u{n // 6}", f"i{n % 20}", "" if n >= 240 - unreadable else str(n)) for n in range(240)]
    (folder / "events.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))
    (folder / "items.csv").write_text("item,title\n" + "".join(f"i{n},Title {n}\n" for n in range(20)))
