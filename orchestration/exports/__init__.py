"""Exports of segments: the door of the database, the log behind it, formats, files and where they go."""
