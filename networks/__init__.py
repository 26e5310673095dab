"""The classifier: DenseNet121 with one dropout before its head, and optional self-attention."""
