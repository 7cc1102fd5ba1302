"""What `elemdist export` puts beside a model's weights, file by file: code for transformers alone.

These files are copied as they are, and run without elemdist: they import nothing of it.
"""

from elemdist.streaming_compat import fit_torchvision

fit_torchvision()  # for transformers; this file is not copied
