"""The embedded data set: synthetic axial head CT with the five kinds of intracranial bleed.

`patients.generate` makes the slices in memory, `files.write_png` and `files.write_dicom` put them
on disk, `python -m dataloaders.phantom` is both.
"""
