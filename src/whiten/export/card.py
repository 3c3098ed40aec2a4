"""The model card of an export, followed by the card of its student."""

from __future__ import annotations

import re

from whiten.export.table import markdown, title
from whiten.models.exported import Manifest


def export_card(manifest: Manifest, student_card: str) -> str:
    """Write the card: contents of the folder, use, and measurements.

    Args:
        student_card: card of the exported student, which is appended one level lower.
    """
    first = manifest.variants[0]
    height, width = manifest.preprocess.size
    files = "\n".join(
        f"| {title(v)} | {', '.join(f'`{name}`' for name in v.files)} |" for v in manifest.variants
    )
    takes = (
        f"`images`: (n, {height}, {width}, 3) uint8 RGB; normalisation is in the graph"
        if manifest.input == "pixels"
        else f"`images`: (n, 3, {height}, {width}) float32, normalised as `export.json` says"
    )
    return f"""# {manifest.name}, exported: {manifest.dim} dimensions

A student for image embeddings, ready to deploy.

```python
from whiten import Exported

student = Exported("path/to/this/folder", format="{first.format}", precision="{first.precision}")
embeddings = student.embed(["photo.jpg"])  # (1, {manifest.dim}) float32, rows L2-normalised
```

On the command line it is `{first.format}:path/to/this/folder?precision={first.precision}`.

- Input: {takes}
- Output: `embeddings`: (n, {manifest.dim}) float32, rows L2-normalised; n is free
- Licence: {manifest.licence}
- Fingerprint of the student in torch: `{manifest.source_fingerprint}`

| variant | files |
|---|---|
{files}

## Measured when it was exported

{markdown(manifest)}
## The student that was exported

The card of the student's own folder:

{_lowered(student_card)}"""


def _lowered(card: str) -> str:
    """Lower headings by two levels, except in code blocks."""
    parts = re.split(r"(^```.*?^```$)", card, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"^#", "###", part, flags=re.MULTILINE)
        for part in parts
    )
