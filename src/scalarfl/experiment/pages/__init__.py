"""Pages that show a run or a comparison: one HTML file each, with its pictures inside, readable offline."""
