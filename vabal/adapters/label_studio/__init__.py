"""Label Studio: open requests become tasks of a project there, and what people say comes into the inbox."""

from vabal.adapters.label_studio.client import LabelStudio
from vabal.adapters.label_studio.syncing import sync

__all__ = ["LabelStudio", "sync"]
