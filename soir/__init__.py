"""What the scripts are made of. A module stands on those of the floors below it.

startup                               what a script imports first: Ctrl-C and a missing requirement end in one line
console                               options, exit status

previews, drawing                     pictures of entries and of rankings; tiles and pages
scoring, metrics, tables              a run scored whole; AP and the like; LaTeX, Markdown, CSV
similarity, features                  ranking by cosine; files of features
rankings, runs, protocol              what a run lists, checked; files of runs; which images are relevant to a query
statistics, detections, published     figures of a file; what a detector found; figures of the paper
coco, instre                          COCO files; INSTRE as it lies on the disk
forms, rules                          entries of other people; every check of verify_dataset.py

mask_images, images, rle              which pixels are the object; image files; COCO RLE
entry, geometry                       what an entry is; boxes

torch_files, unpickler, arrays        files of torch; what is in their pickles; arrays of strangers
workers, findings, files, paths       map over processes; what was skipped; reading and writing; names of files
"""
