"""Backups: made, kept, checked, brought back and drilled."""
