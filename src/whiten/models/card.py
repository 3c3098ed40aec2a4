"""The model card: the README stored with a student's weights."""

from __future__ import annotations

from whiten.models.student_folder import StudentConfig


def model_card(config: StudentConfig, runtime: str = "") -> str:
    """Return Markdown with the student's properties, origin and use.

    Args:
        runtime: its runtime, in a sentence.
    """
    teachers = "\n".join(
        f"| `{t['uri']}` | {t['licence']} | `{t['fingerprint'][:12]}` |" for t in config.teachers
    )
    shown = {name: value for name, value in config.training.items() if name != "measured"}
    training = "\n".join(f"- {name}: {value}" for name, value in shown.items())
    origin = config.training.get("origin", "distilled with whiten")
    gallery = (
        f"- Its queries search a gallery embedded by `fuse:compatible:RUN` of its run too "
        f"(fingerprint `{config.compatible_with[:12]}`)\n"
        if config.compatible_with
        else ""
    )
    height, width = config.preprocess.size
    return f"""# {config.architecture} student, {config.dim} dimensions

An image-embedding model for visual search, {origin}.

```python
import whiten

student = whiten.load("path/to/this/folder")
embeddings = student.embed(["photo.jpg"])  # (1, {config.dim}) float32, rows L2-normalised
```

- Input: {width}x{height} px, {config.preprocess.fit}, {config.preprocess.interpolation}
- Backbone: `{config.backbone}` ({config.backbone_licence})
- Compare embeddings by their dot product.
{f"- {runtime}{chr(10)}" if runtime else ""}{gallery}
## Teachers

| model | licence of its weights | fingerprint |
|---|---|---|
{teachers}

The student learnt from these models' outputs: check that their licences allow your use.

## Training

{training}
"""
