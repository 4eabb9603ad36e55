"""May this principal do this: tiers, grants and the one query of visible projects."""
