"""From files to batches: images, masks, crops, augmentation."""
