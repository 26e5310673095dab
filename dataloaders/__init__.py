"""From files on disk to batches of augmented images, and who gets which."""
