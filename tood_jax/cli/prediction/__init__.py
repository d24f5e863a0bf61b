"""What predict.py reads and writes: readers of images, formats of results, and the record of an interrupted job."""
