"""Offline conversion of corpora into shards of fixed-size byte rows. Never imports torch."""
