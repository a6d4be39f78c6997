"""The commands of the `audience` command, a module for each group."""
