"""The rights of a person: everything held on him as one file, and its erasure."""
