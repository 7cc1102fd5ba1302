"""`elemdist convert`: shard sets into others, or into text again."""
