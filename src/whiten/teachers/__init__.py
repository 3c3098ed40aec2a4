"""Teachers: frozen embedding models, opened by URI; one module a source."""

from whiten.teachers.base import Teacher
from whiten.teachers.registry import open_teacher

__all__ = ["Teacher", "open_teacher"]
