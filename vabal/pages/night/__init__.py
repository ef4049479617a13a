"""The page of a round: what was picked and why, what changed, how good the classifier is, in one HTML file."""

from vabal.pages.night.page import page, write

__all__ = ["page", "write"]
