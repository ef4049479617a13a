"""Promotion: is the challenger better, who is champion, and the record of who was."""
