"""What only a GPU can show; skipped, with a reason, where there is none."""
