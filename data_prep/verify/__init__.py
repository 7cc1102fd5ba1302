"""`elemdist verify`: a shard set checked wholly, and repaired."""
