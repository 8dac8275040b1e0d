"""TRL's trainers of preferences and policies, patched and as they are."""
