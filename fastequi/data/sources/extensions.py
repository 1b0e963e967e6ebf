"""How names of images end, by the format: as Pillow calls it, or of arrays and DICOM."""

OF_IMAGES = {  # that DALI or Pillow decodes
    "JPEG": ("jfif", "jpe", "jpeg", "jpg"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "DIB": ("dib",),
    "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "GIF": ("gif",),
    "AVIF": ("avif",),
}
OF_ARRAYS = {"NPY": ("npy",), "NPZ": ("npz",), "DICOM": ("dcm", "dicom")}
