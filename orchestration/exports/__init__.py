"""Exports: a segment's people as files, in the formats of ad platforms and others, and delivered."""
