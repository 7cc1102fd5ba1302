"""The input side: sources are found, cut into parts, and read as batches of documents."""
