"""The commands that have sub-commands, and what all commands share."""
