"""What is drawn for each image: windows, colours, masks, rotations; it decodes no pixel."""
