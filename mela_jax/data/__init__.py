"""Images and labels: data sets, splits, decoding, augmentation and batches."""
