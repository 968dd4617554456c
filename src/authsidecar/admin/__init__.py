"""What operators do: tokens, settings, import, explain. The commands of `cli` call it."""
