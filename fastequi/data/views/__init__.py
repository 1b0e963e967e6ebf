"""What is drawn for each image: windows, colours, masks, turns; nothing here decodes a pixel."""
