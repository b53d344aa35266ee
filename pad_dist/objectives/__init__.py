"""The losses of a stage in plain torch: recommendation losses, alignments and auxiliary losses."""
