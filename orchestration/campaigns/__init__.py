"""E-mail campaigns: templates, messages, the mail server, and what became of each message. No Dagster."""
