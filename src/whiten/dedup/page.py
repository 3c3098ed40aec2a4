"""Write a self-contained page that shows the groups side by side."""

from __future__ import annotations

from html import escape

from whiten.dedup.finding import Deduplication, Group, Member
from whiten.errors import counted
from whiten.media.thumbnails import data_url
from whiten.report.page import STYLE, facts_list, page
from whiten.utils.names import display_path

MOST_GROUPS = 200  # with their pictures about 10 MB
MOST_MEMBERS = 12
_TILE = 160  # pixels

_STYLE = (
    STYLE
    + """
main { max-width: 76rem; }
section { content-visibility: auto; contain-intrinsic-size: auto 260px; margin-top: 2rem; }
section > p.low { color: var(--doubt); }
:root { --doubt: #b45309; }
@media (prefers-color-scheme: dark) { :root { --doubt: #f0b35a; } }
.row { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .5rem; min-width: 0; }
figure.kept { border: 2px solid var(--best); }
figure img, figure .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 6px; }
figure .none { background: #fff; color: #5b6472; display: grid; font-size: .8rem;
  place-items: center; }
figcaption { font-size: .8rem; line-height: 1.4; margin-top: .4rem; }
figcaption span { color: var(--quiet); display: block; }
"""
)

HELP = (
    "Framed images are kept. The number is the similarity to the framed one before, “same file” a "
    "byte-identical copy. The groups with the least similar members stand first: look there for "
    "mistakes."
)


def groups_page(found: Deduplication, table: str) -> str:
    """Return the page's HTML; if there are too many groups, the most doubtful ones.

    Args:
        table: name of the file that lists all groups.
    """
    kinds = [member.kind for group in found.groups for member in group.members]
    facts = [
        (f"{found.what}s compared", f"{found.count:,}"),
        ("least similarity", f"{found.threshold:.4f}"),
        ("kept", f"{kinds.count('kept'):,}"),
        ("byte-identical to a kept one", f"{kinds.count('exact'):,}"),
        ("near-duplicates", f"{kinds.count('near'):,}"),
        ("size of the copies", f"{sum(m.bytes for m in found.copies) / 1e6:,.1f} MB"),
        ("could not be read", f"{len(found.skipped):,}"),
    ]
    parts = [facts_list(facts)]
    if found.calibration is not None:
        parts.append(f"<p>{escape(found.calibration.line(found.what))}</p>")
    if found.groups:
        parts.append(f"<p>{escape(HELP)}</p>")
    elif found.calibration is None:
        parts.append(f"<p>No two {found.what}s are as similar: try a lower threshold.</p>")
    # Groups of exact copies only are never doubtful: show the largest of them.
    ordered = sorted(found.groups, key=lambda g: (g.lowest, -len(g.members), g.number))
    shown = ordered[:MOST_GROUPS]
    if len(shown) < len(found.groups):
        parts.append(
            f"<p>{len(shown):,} of {len(found.groups):,} groups are shown here, all of them are in "
            f"{escape(table)}.</p>"
        )
    parts += [_group(group, found.threshold, found.what) for group in shown]
    title = f"{counted(len(found.groups), 'group')} of near-duplicate {found.what}s"
    return page(title, parts, _STYLE)


def _group(group: Group, threshold: float, what: str) -> str:
    count = len(group.members)
    text = f"{count:,} members, the least similar have {group.lowest:.3f}"
    is_chain = group.lowest < threshold
    if is_chain:
        text += ": below the threshold, so they are linked through others"
    if count > MOST_MEMBERS:
        text += f"; the first {MOST_MEMBERS} are shown"
    tiles = "".join(_tile(member, what) for member in group.members[:MOST_MEMBERS])
    mark = ' class="low"' if is_chain else ""
    return (
        f"<section><h2>Group {group.number}</h2><p{mark}>{escape(text)}</p>"
        f'<div class="row">{tiles}</div></section>'
    )


def _tile(member: Member, what: str) -> str:
    kind = {
        "kept": "<b>kept</b>",
        "exact": "same file",
        "near": f"{member.similarity:.4f}",
    }[member.kind]
    facts = f"{member.width} × {member.height}, {member.bytes / 1000:,.1f} kB"
    if member.compression:
        facts += f", {escape(member.compression)}"
    if member.detail < 1:
        facts += f", detail of {round(member.width * member.detail)} pixels' width"
    if what == "video":
        facts += f", {member.seconds:,.0f} s"
    if member.frames > 1:
        facts += f", the first of {member.frames:,} frames"
    if member.is_link:
        facts += ", a link"
    if member.is_reference:
        facts += ", in the reference"
    name, path = escape(member.id), escape(display_path(member.path))
    source = data_url(member.picture, _TILE)
    picture = (
        f'<img src="{source}" alt="{name}" loading="lazy">'
        if source
        else '<div class="none">cannot be read</div>'
    )
    mark = ' class="kept"' if member.is_kept else ""
    return (
        f'<figure{mark} title="{path}">{picture}<figcaption>{kind}<span>{name}</span>'
        f"<span>{facts}</span></figcaption></figure>"
    )
