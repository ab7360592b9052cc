"""The data sets, one file each, and the file formats that several of them share."""
