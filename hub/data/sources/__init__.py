"""Files, folders, datasets of the model hub and rows in memory to rows."""
