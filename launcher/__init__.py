"""Starting training: the ranks of one machine. Fast to import, no torch."""
