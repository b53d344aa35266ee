"""Methods compared on the same data: runs side by side, and the document of their results."""
