"""The thin Python runner of Audience Intelligence: load, build, segments, exports, orchestration."""
