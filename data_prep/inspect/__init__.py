"""`elemdist inspect`: what a shard set holds, and which n and v suit a corpus."""
